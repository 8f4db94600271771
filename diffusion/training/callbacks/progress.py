"""The progress bar."""

import logging
import sys
import time
from math import inf
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from diffusion.training.callbacks.time_limit import TimeLimit

log = logging.getLogger(__name__)


class Progress(Callback):
    """Steps done of steps to do, with the loss, the learning rate, images/s and every metric's last value. After three
    seconds of training a line says how long the rest will take."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar; into a file or a pipe it writes a line every 10 s."""
        quiet = not sys.stderr.isatty()
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            mininterval=10 if quiet else 0.2,
            disable=not trainer.is_global_zero,
        )
        self.since: tuple[float, int] | None = None  # after the first step, which may compile
        self.said = False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Follow the optimizer's steps."""
        self.bar.set_postfix(shown(module.latest), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)
        self.foretell(trainer)

    def foretell(self, trainer: Trainer) -> None:
        """Say once how long training will take from here, its evaluations not counted."""
        if self.said or not trainer.is_global_zero:
            return
        now, step = time.perf_counter() - trainer.lightning_module.evaluation_seconds, trainer.global_step
        if self.since is None:
            self.since = now, step
        steps, seconds, left = step - self.since[1], now - self.since[0], trainer.max_steps - step
        if steps and seconds > 3:  # by then an accelerator's queue is full, and the host goes at its pace
            self.said = True
            if said := forecast(left, seconds / steps, time_left(trainer)):
                log.info(said)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self.bar.set_postfix(shown(module.latest))
        self.bar.close()

    on_exception = lambda self, trainer, module, exception: getattr(self, "bar", tqdm(disable=True)).close()  # noqa: E731


def time_left(trainer: Trainer) -> float:
    """Seconds until `minutes` are over; infinity without them."""
    return min((callback.left for callback in trainer.callbacks if isinstance(callback, TimeLimit)), default=inf)  # type: ignore[attr-defined]


def forecast(steps: int, seconds: float, limit: float = inf) -> str | None:
    """What is said of so many steps that are left, each of so many seconds, of which `limit` are left; nothing of less than 10 s."""
    if limit < steps * seconds:
        return f"{steps:,} steps to go: {duration(limit)} are left for about {limit / seconds:,.0f} of them and the evaluations"
    return f"{steps:,} steps to go: {duration(steps * seconds)} and the evaluations" if steps * seconds > 10 else None


def shown(latest: dict[str, float]) -> dict[str, str]:
    """The latest numbers that are shown, by their words: loss, speed, and metrics ("@n" in their names) without their errors."""
    metrics = {key: key for key in latest if "@" in key and not key.endswith(("/error", "/std"))}
    words = {"loss": "loss", "learning_rate": "lr", "images_per_second": "img/s"} | metrics
    return {word: f"{latest[key]:.4g}" for key, word in words.items() if key in latest}


def duration(seconds: float) -> str:
    """A time as people say it: 40 seconds, 12 minutes, 5.5 hours, 12 days."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.2g} {unit}"
    return f"about {seconds:.0f} seconds"
