"""Metrics of generated images, every so many steps."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from diffusion.callbacks.periodic import Evaluation, record
from diffusion.measure import measure


class Distance(Evaluation):
    """Every `every` steps, for each of the module's recipes: n images, each with a seed of its own, and every metric of them.

    Each rank makes and measures its share. Conditional models are given the classes in turn. Each number is recorded with its
    passport."""

    def __init__(self, every: int, metrics: dict[str, Any], at_start: bool = True) -> None:
        super().__init__(every, at_start)
        self.metrics = metrics.values()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Reference statistics, from disk or made once by all ranks."""
        for metric in self.metrics:
            metric.setup(trainer.datamodule.images, trainer.strategy.root_device)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        classes, ema = trainer.datamodule.dataset.num_classes, {"decay": module.ema.max_decay}
        for way, recipe in module.recipes.items():
            for name, value, passport in measure(recipe, self.metrics, classes, ema, trainer.global_step):
                key = name if way == "main" else f"{name}/{way}"
                record(trainer, {key: value}, passport=passport.to_dict(), metric=key)
