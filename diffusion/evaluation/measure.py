"""The metrics of a recipe's images, over all ranks: computed by a training every so many steps, and by `diffusion.evaluate` afterwards."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion.evaluation.given import GivenImages
from diffusion.evaluation.kept import Books, KeptFeatures
from diffusion.evaluation.subjects import Drawn
from diffusion.generate import Recipe
from diffusion.metrics import Metric, Passport, code_version
from diffusion.model import Model
from diffusion.support.errors import UserError
from diffusion.support.progress import bar
from diffusion.support.ranks import rank_and_world

Source = Recipe | Drawn | GivenImages  # of images
FIRST_SEED = 1_000_000  # far from the seeds of the sample grids
MODEL_ALONE = {"sampler": {"name": "none"}, "guidance": None, "conditions": None}  # for metrics of the model alone


def measure(
    model: Model | GivenImages,
    recipe: Source,
    metrics: Collection[Metric],
    facts: Mapping[str, Any],
    first_seed: int = FIRST_SEED,
    kept: KeptFeatures | None = None,
) -> Iterator[tuple[Metric, dict[str, float], Passport]]:
    """Make the images once and yield (metric, its numbers by name, passport) for every metric; on all ranks at once, each with its share.

    A metric of n images sees the first n of them, seeds first_seed .. first_seed + n - 1, with the conditions that the recipe asks for. The
    metrics have been set up; one that has questions of its own (`Metric.asks`) has images of its own. `facts` are the passport's fields
    that are the model's: ema, step, weights. With `kept` the features of images that were measured before are read, and those of others
    are kept, but for images that are asked for by a metric's own questions."""
    for way, asking in questions(recipe, metrics):
        yield from measure_together(model, way, asking, facts, first_seed, kept if way is recipe else None)


def questions(recipe: Source, metrics: Collection[Metric]) -> list[tuple[Source, list[Metric]]]:
    """The metrics that ask as the recipe does, with it, and each of the others with the recipe that asks its questions.

    Raises UserError for a metric with questions, or of a model, where the images are there already."""
    usual = recipe.conditions
    asked = [(metric, metric.asks(usual)) for metric in metrics]
    if isinstance(recipe, GivenImages):
        for metric in (metric for metric, conditions in asked if conditions is not usual or metric.n == 0):
            raise UserError(f"{metric.name} asks a model, and {recipe.path} holds images that are made: measure the run by ckpt=runs/NAME.")
        return [(recipe, list(metrics))]
    own = [(replace(recipe, conditions=conditions), [metric]) for metric, conditions in asked if conditions is not usual]
    return [(recipe, [metric for metric, conditions in asked if conditions is usual]), *own]


def measure_together(
    model: Model | GivenImages,
    recipe: Source,
    metrics: Collection[Metric],
    facts: Mapping[str, Any],
    first_seed: int,
    kept: KeptFeatures | None = None,
) -> Iterator[tuple[Metric, dict[str, float], Passport]]:
    """`measure` for metrics whose images are the same."""
    for metric in metrics:
        metric.reset()
        if metric.n == 0 and isinstance(model, Model):  # it looks at the model, without guidance, and not at images
            metric.model(model.denoiser, model.codec, model.conditions)
    way = recipe.describe() | {"nfe": give_images(recipe, metrics, first_seed, kept)}
    for metric in metrics:
        with recipe.computing():
            values = metric.numbers()
        made = way if metric.n else way | MODEL_ALONE | {"nfe": 0}
        seeds = {"first": first_seed, "count": metric.n}
        yield metric, values, Passport(**metric.passport(), **made, **facts, seeds=seeds, code=code_version())


def give_images(recipe: Source, metrics: Collection[Metric], first_seed: int, kept: KeptFeatures | None) -> int:
    """Give each metric its images, of this rank's share in batches, or what is kept of them; the mean number of the denoiser's calls."""
    books, calls = Books(kept, metrics), []
    for indices in shares(max((metric.n for metric in metrics), default=0), recipe.batch_size):
        cond = recipe.conditions.ask(indices)
        known = books.known(indices)
        images, nfe = recipe((indices + first_seed).tolist(), cond) if known is None else known
        calls.append(nfe)
        for metric in metrics:
            if not (own := int((indices < metric.n).sum())):
                continue
            batch: Any = images[id(metric.store)] if isinstance(images, dict) else images
            metric.update(batch[:own], None if cond is None else cond[:own])
        if not isinstance(images, dict):
            books.put(indices, images, nfe)
    books.tidy()
    return round(sum(calls) / max(1, len(calls)))


def shares(n: int, size: int) -> Iterator[Tensor]:
    """This rank's share of the numbers of n images, in batches of at most `size`."""
    rank, world = rank_and_world()
    parts = [part for part in torch.arange(n)[rank::world].split(size) if len(part)]
    yield from bar(parts, f"measuring {n:,} images", len(parts))
