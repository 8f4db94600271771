"""Reading what training accumulated: losses, gradient norm, learning rate, speed."""

import time

from pytorch_lightning import LightningModule, Trainer
from torch.optim import Optimizer

from diffusion.training.callbacks.periodic import Periodic, record


class Losses(Periodic):
    """After the first step and every `every` steps: each loss term, the loss by quarter of t, gradient norm, learning rate,
    images/s, EMA decay.

    Means over the steps since the last reading, and over all ranks; the learning rate is that of the last step. The device is waited for
    here and nowhere else."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        super().on_train_start(trainer, module)
        self._mark(trainer, module)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """The step's learning rate; when the step has been made the optimizer has the next one's."""
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def _mark(self, trainer: Trainer, module: LightningModule) -> None:
        self.since = (time.perf_counter(), module.evaluation_seconds, trainer.global_step)

    def due(self, step: int) -> bool:
        """A loss is seen at once, however seldom it is logged."""
        return step == 1 or super().due(step)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        values = module.meter.read()
        now, evaluation, step = time.perf_counter(), module.evaluation_seconds, trainer.global_step
        seconds = now - self.since[0] - (evaluation - self.since[1])
        values["images_per_second"] = (step - self.since[2]) * trainer.datamodule.per_step / seconds
        values["learning_rate"] = self.learning_rate
        values["ema_decay"] = module.ema.decay
        record(trainer, values)
        self._mark(trainer, module)
