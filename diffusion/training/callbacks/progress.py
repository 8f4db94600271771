"""The progress bar."""

import sys
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm


class Progress(Callback):
    """Steps done of steps to do, with the loss, images/s and every metric's last value."""

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

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Follow the optimizer's steps."""
        self.bar.set_postfix(shown(module.latest), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self.bar.set_postfix(shown(module.latest))
        self.bar.close()

    on_exception = lambda self, trainer, module, exception: getattr(self, "bar", tqdm(disable=True)).close()  # noqa: E731


def shown(latest: dict[str, float]) -> dict[str, str]:
    """The latest numbers that are shown, by their words: loss, speed, and metrics ("@n" in their names) without their errors."""
    metrics = {key: key for key in latest if "@" in key and not key.endswith(("/error", "/std"))}
    words = {"loss": "loss", "images_per_second": "img/s"} | metrics
    return {word: f"{latest[key]:.4g}" for key, word in words.items() if key in latest}
