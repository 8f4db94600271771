"""The metrics of a recipe's images, over all ranks: what a training does every so many steps and `diffusion.evaluate` afterwards."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from diffusion.metrics import Metric, Passport, code_version
from diffusion.support.ranks import rank_and_world

FIRST_SEED = 1_000_000  # apart from those of the sample grids
MODEL_ALONE = {"sampler": {"name": "none"}, "nfe": 0, "guidance": None}  # a recipe's part of the passport of what no image was made for


def measure(
    recipe: Callable, metrics: Collection, num_classes: int, ema: dict | None, step: int, first_seed: int = FIRST_SEED
) -> Iterator[tuple[Metric, dict[str, float], Passport]]:
    """Make the images once and yield (metric, its numbers by name, passport) for every metric; on all ranks at once, each with its share.

    A metric of n images sees the first n of them, seeds first_seed .. first_seed + n - 1. The metrics have been set up."""
    for metric in metrics:
        metric.reset()
        if metric.n == 0:  # it looks at the model, not at images
            metric.model(recipe.denoiser, recipe.codec)
    for indices, images in share(recipe, max((metric.n for metric in metrics), default=0), num_classes, first_seed):
        for metric in metrics:
            wanted = indices < metric.n
            metric.update(images[wanted], (indices % num_classes)[wanted] if num_classes else None)
    for metric in metrics:
        values = metric.numbers()
        passport = Passport(
            **metric.passport(),
            **(recipe.describe() if metric.n else MODEL_ALONE),
            ema=ema,
            seeds={"first": first_seed, "count": metric.n},
            step=step,
            code=code_version(),
        )
        yield metric, values, passport


def share(recipe: Callable, n: int, num_classes: int, first_seed: int = FIRST_SEED) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of n images, in batches: yields (indices, uint8 images [b, h, w, c]). Image i has seed first_seed + i and,
    where there are classes, class i mod num_classes."""
    rank, world = rank_and_world()
    for indices in torch.arange(n)[rank::world].split(recipe.batch_size):
        yield indices, recipe((indices + first_seed).tolist(), indices % num_classes if num_classes else None)
