"""Metrics of generated images, every so many steps."""

from collections.abc import Callable
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from diffusion.checkpoint import weights_hash
from diffusion.evaluation.measure import measure
from diffusion.metrics import Metric
from diffusion.pictures import save_png
from diffusion.support.ranges import Count, Several
from diffusion.training.callbacks.evaluation import Evaluation
from diffusion.training.callbacks.periodic import record
from diffusion.training.callbacks.samples import log_image


class Distance(Evaluation):
    """Every `every` steps (never, for null or without metrics), for each of the module's recipes: makes n images, each with a seed of its
    own, and computes every metric of them. Metrics of the model alone are computed once. With `n`, only the metrics of images are computed,
    each of n images.

    Each rank makes and measures its share, and image i is asked for as the recipe's conditions say. Each number is recorded with its
    passport."""

    def __init__(
        self, every: Count | None, metrics: Callable[[int | None], list[Metric]], n: Several | None = None, at_start: bool = True
    ) -> None:
        self.metrics = [] if every is None else metrics(n)
        super().__init__(every if self.metrics else None, at_start)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Reference statistics, from disk or made once by all ranks."""
        for metric in self.metrics:
            metric.setup(trainer.datamodule.images, trainer.strategy.root_device, module.recipes["main"].conditions)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        weights = weights_hash(module.denoiser)
        for i, (way, recipe) in enumerate(module.recipes.items()):
            asked = [metric for metric in self.metrics if metric.n or i == 0]
            facts = {"ema": module.ema.describe(), "step": trainer.global_step, "weights": weights}
            for metric, numbers, passport in measure(module.model, recipe, asked, facts):
                values, notes = ({of_way(key, way): value for key, value in part.items()} for part in (numbers, metric.facts()))
                name = of_way(metric.name, way)
                record(trainer, values, passport=passport.to_dict(), metric=name, **notes)
                if trainer.is_global_zero:
                    self.show(trainer, metric.picture(), name.replace("/", "-"))

    def show(self, trainer: Trainer, picture: Tensor | None, key: str) -> None:
        """Write a metric's picture, if it has one, under samples/ and to the loggers."""
        if picture is None:
            return
        save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{key}-step={trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            log_image(logger, f"samples/{key}", picture, trainer.global_step)


def of_way(key: str, way: str) -> str:
    """The name of a number of a recipe other than the main one: fd@1k/error becomes fd@1k/WAY/error."""
    name, slash, part = key.partition("/")
    return key if way == "main" else f"{name}/{way}{slash}{part}"
