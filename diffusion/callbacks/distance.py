"""Metrics of generated images, every so many steps."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from diffusion.callbacks.periodic import Evaluation, record
from diffusion.callbacks.samples import log_image
from diffusion.generate import Recipe
from diffusion.images import save_png
from diffusion.metrics import Passport, code_version
from diffusion.metrics.ranks import rank_and_world

FIRST_SEED = 1_000_000  # apart from those of the sample grids


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
        for name, recipe in module.recipes.items():
            for metric in self.metrics:
                metric.reset()
                metric.model(recipe.denoiser, recipe.codec)
            n = max((metric.n for metric in self.metrics), default=0)
            classes = trainer.datamodule.dataset.num_classes
            for indices, images in share(recipe, n, classes):
                for metric in self.metrics:
                    wanted = indices < metric.n
                    metric.update(images[wanted], (indices % classes)[wanted] if classes else None)
            for metric in self.metrics:
                suffix = "" if name == "main" else f"/{name}"
                values = {f"{key}{suffix}": value for key, value in metric.numbers().items()}
                passport = Passport(
                    **metric.passport(),
                    **recipe.describe(),
                    ema={"decay": module.ema.max_decay},
                    seeds={"first": FIRST_SEED, "count": metric.n},
                    step=trainer.global_step,
                    code=code_version(),
                )
                record(trainer, values, passport=passport.to_dict(), metric=f"{metric.name}{suffix}", **metric.facts())
                self.show(trainer, metric.picture(), f"{metric.name}{suffix}".replace("/", "-"))

    def show(self, trainer: Trainer, picture: Tensor | None, key: str) -> None:
        """Write a metric's picture, if it has one, under samples/ and to the loggers."""
        if picture is None or not trainer.is_global_zero:
            return
        save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{key}-step={trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            log_image(logger, f"samples/{key}", picture, trainer.global_step)


def share(recipe: Recipe, n: int, num_classes: int):  # noqa: ANN201
    """This rank's share of n images, in batches: yields (indices, uint8 images [b, h, w, c]). Image i has seed FIRST_SEED + i and,
    where there are classes, class i mod num_classes."""
    rank, world = rank_and_world()
    for indices in torch.arange(n)[rank::world].split(recipe.batch_size):
        yield indices, recipe((indices + FIRST_SEED).tolist(), indices % num_classes if num_classes else None)
