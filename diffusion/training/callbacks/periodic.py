"""A callback that acts every so many optimizer steps, on all ranks, and the one way to record numbers."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.metrics import write_metrics
from diffusion.support.ranges import Count


class Periodic(Callback, ABC):
    """Acts after optimizer steps EVERY, 2 EVERY, ..., after the last one, and with `at_start` before the first; never if EVERY is None."""

    def __init__(self, every: Count | None, at_start: bool = False) -> None:
        if every is not None and every < 1:
            raise ValueError(f"A callback acts every so many steps: {type(self).__name__}.every={every} is below 1.")
        self.every, self.at_start, self.done = every, at_start, -1

    @abstractmethod
    def act(self, trainer: Trainer, module: LightningModule) -> None:
        """The action; called on all ranks at once."""

    def due(self, step: int) -> bool:
        """Whether to act after this step."""
        return step % self.every == 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Act before the first step of a new run; a resumed one has done so."""
        if self.every is not None and self.at_start and trainer.global_step == 0:
            self.now(trainer, module)
        self.done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Act if a step that is due has just been made (a batch that only accumulates makes none)."""
        if self.every is not None and trainer.global_step != self.done and self.due(trainer.global_step):
            self.now(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Act after the last step unless that was done."""
        if self.every is not None and trainer.global_step != self.done:
            self.now(trainer, module)

    def now(self, trainer: Trainer, module: LightningModule) -> None:
        """Act, and remember it."""
        self.act(trainer, module)
        self.done = trainer.global_step


def record(trainer: Trainer, values: dict[str, float], step: int | None = None, **facts: Any) -> None:
    """Write numbers, of this step if it is not another, to every logger and, with the facts about them, as one line of the run's
    metrics.jsonl, which says when it is and since when this process trains; on the first rank."""
    step = trainer.global_step if step is None else step
    trainer.lightning_module.latest.update(values)
    trainer.lightning_module.latest_step.update(dict.fromkeys(values, step))
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)
    images = step * trainer.datamodule.per_step
    line = {"step": step, "images": images, "time": time.time(), "since": trainer.lightning_module.since, **values, **facts}
    write_metrics(Path(trainer.default_root_dir) / "metrics.jsonl", line)
