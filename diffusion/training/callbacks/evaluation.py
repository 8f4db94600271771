"""What is made and measured during a training, and does not count as training."""

import time
from abc import abstractmethod

from pytorch_lightning import LightningModule, Trainer

from diffusion.training.callbacks.checkpoints import save_last
from diffusion.training.callbacks.periodic import Periodic, record


class Evaluation(Periodic):
    """A Periodic whose time counts as evaluation, not as training. After each, evaluation_seconds is recorded: the wall time that all
    evaluations of the run have taken so far on the first rank, including those before a resumption.

    A checkpoint is saved before each, so that it can be left, and after it. `done` is the step of the last that was finished: what a run
    that was stopped has left is made when it is resumed."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Make what was left; see `Interruption`, whose state `done` is."""
        step = trainer.global_step
        if self.every is not None and 0 <= self.done < step and (self.due(step) or step >= trainer.max_steps):
            self.now(trainer, module)
        super().on_train_start(trainer, module)

    def now(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing of a run's first evaluation is worth a checkpoint."""
        if trainer.global_step:
            save_last(trainer, module)
        super().now(trainer, module)
        if trainer.global_step:
            save_last(trainer, module)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        started = time.perf_counter()
        with module.sampling():
            self.evaluate(trainer, module)
        module.evaluation_seconds += time.perf_counter() - started
        record(trainer, {"evaluation_seconds": module.evaluation_seconds})

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Like `act`, with averaged weights, in evaluation mode and without gradients."""
