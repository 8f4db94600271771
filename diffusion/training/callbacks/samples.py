"""A picture of samples, every so many steps."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from diffusion.editing import beside
from diffusion.generate import Recipe
from diffusion.pictures import save_png, show
from diffusion.support.ranges import Count, Few, Seed
from diffusion.support.ranks import gather_dealt, rank_and_world
from diffusion.training.callbacks.evaluation import Evaluation


class Samples(Evaluation):
    """Every `every` steps, for each of the module's recipes: a grid of samples, as PNG under samples/ and to the loggers.

    A class-conditional model's grid has a row for each class (the first `rows` of them), the same seeds every time; of classes that are
    left to chance, a row for each draw; of texts, a row under each of the first `rows`. Of vectors there are `points`, in one scatter.
    Each rank makes its share."""

    def __init__(self, every: Count, rows: Few = 10, columns: Few = 10, points: Few = 1000, seed: Seed = 0, at_start: bool = False) -> None:
        super().__init__(every, at_start)
        self.rows, self.columns, self.points, self.seed = rows, columns, points, seed

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        rank, world = rank_and_world()
        for name, recipe in module.recipes.items():
            asked = recipe.conditions
            rows, columns = min(self.rows, asked.num_classes or (asked.period if asked.period > 1 else self.rows)), self.columns
            if len(recipe.shape) == 1:
                rows, columns = self.points, 1
            numbers = torch.arange(rows * columns)
            images = gather_dealt(self.made(recipe, numbers[rank::world], columns))
            if trainer.is_global_zero:
                picture = show(images, self.columns, names=asked.names(numbers // columns))
                save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-step={trainer.global_step:08d}.png")
                for logger in trainer.loggers:
                    log_image(logger, f"samples/{name}", picture, trainer.global_step)

    def made(self, recipe: Recipe, numbers: Tensor, columns: int) -> Tensor:
        """The images with these numbers, of a grid of so many columns."""
        return recipe((numbers + self.seed).tolist(), recipe.conditions.ask(numbers // columns)).images


class Reconstructions(Samples):
    """Every `every` steps: a grid of pictures of the data set, the first ones, each with its reconstruction at its right."""

    def made(self, recipe: Recipe, numbers: Tensor, columns: int) -> Tensor:
        return beside(recipe)((numbers + self.seed).tolist(), recipe.conditions.ask(numbers)).images


def log_image(logger: Any, key: str, picture: Tensor, step: int) -> None:
    """A picture uint8 [h, w, c] to a logger that takes pictures: wandb's `log_image`, or TensorBoard's writer."""
    if hasattr(logger, "log_image"):
        logger.log_image(key, [picture.numpy()], step=step)
    elif hasattr(logger.experiment, "add_image"):
        logger.experiment.add_image(key, picture.numpy(), step, dataformats="HWC")
