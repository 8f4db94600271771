"""Ending a training when its time is over."""

import logging
import time
from math import inf
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.support.ranges import Positive
from diffusion.training.callbacks.agreement import Agreement

log = logging.getLogger(__name__)


class TimeLimit(Callback):
    """Ends a training after the optimizer step at which `minutes` are over since this process began to train, as if that step were the
    last of `steps`: all ranks after the same one, with whatever is made and saved at a training's end. Evaluations and compilation count,
    and what is made at the end comes after it. None is no limit.

    It acts before the callbacks that save: its state, in a checkpoint of the last step, says that the time was over. A resumed training
    takes no notice of it, and has `minutes` of its own."""

    def __init__(self, minutes: Positive | None) -> None:
        self.minutes, self.over, self.step, self.until = minutes, False, -1, inf
        self.agreement = Agreement()

    @property
    def left(self) -> float:
        """Seconds until the time is over; infinity without a limit."""
        return self.until - time.monotonic()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.until = inf if self.minutes is None else time.monotonic() + 60 * self.minutes

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From which step on."""
        self.step = trainer.global_step
        if self.minutes is not None:
            self.agreement.begin()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """After an optimizer step, never while gradients are being accumulated."""
        if self.minutes is None or trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if self.agreement(int(self.left <= 0)):
            self.over = trainer.should_stop = True
            if trainer.is_global_zero and self.step < trainer.max_steps:
                said = "minutes=%g are over: the training ends at step %s of %s"
                log.info(said, self.minutes, f"{self.step:,}", f"{trainer.max_steps:,}")

    def state_dict(self) -> dict[str, Any]:
        """Whether the time was over."""
        return {"over": True} if self.over else {}
