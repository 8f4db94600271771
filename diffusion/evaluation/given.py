"""Images that are there already, of a folder, a zip or an npz, in the place of a recipe that makes them; and references from files."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from diffusion.album import FILES
from diffusion.conditions import Unconditional
from diffusion.data import ImageSet, StoredImages
from diffusion.data.stored import ARRAYS
from diffusion.evaluation.made import recipe_in
from diffusion.evaluation.rows import is_count, is_sampler
from diffusion.generate import Made
from diffusion.metrics import FrechetDistance, Statistics, read_statistics, write_statistics
from diffusion.metrics.reference import RealImages
from diffusion.metrics.statistics import KEYS
from diffusion.npz import headers
from diffusion.support.build import build_stages
from diffusion.support.errors import UserError
from diffusion.support.ranks import rank_and_world

log = logging.getLogger(__name__)
GIVEN = "given images"
SAID = {"sampler": dict, "seeds": dict, "step": int, "nfe": int}  # what a recipe says at least, and of what kind
OPTIONAL = {**dict.fromkeys(("guidance", "conditions", "codec"), dict | None), "precision": str, "device": str, "weights": str | None}
KEPT = ("sampler", "guidance", "conditions", "precision", "device", "codec")  # of a recipe.json, for the passport


@dataclass(frozen=True, kw_only=True)
class Labelled(Unconditional):
    """The classes that given images were asked to be: image i has labels[i]."""

    labels_given: Tensor = field(repr=False)
    num_classes: int = 0  # type: ignore[misc]  # a ClassVar of what has none
    period: int = 1  # type: ignore[misc]
    given: ClassVar[bool] = True

    def ask(self, indices: Tensor) -> Tensor:
        """The classes of the images number `indices` [b]: int64 [b]."""
        return self.labels_given[indices]

    def labels(self, data: Any) -> Tensor | None:
        """The classes of real images, int64 [n]; None where there are none."""
        return None if data.labels is None else torch.from_numpy(data.labels)

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of real images with these labels: the labels."""
        return labels


@dataclass(frozen=True)
class GivenImages:
    """Used in place of a recipe: the images of a file or folder. Image i is one of them, drawn without replacement by seed 0, since files
    are often sorted by class and the groups and splits of metrics are to be alike.

    `made_by` is what sample.py says of them where they are what a metric would have asked of the run: images of its own size, each of its
    own seed, asked for as the run asks, and all of them, which then keep their order. Of other images nothing is taken to be known.
    `num_classes` are the classes of the real images."""

    data: ImageSet = field(repr=False)
    path: Path
    num_classes: int = 0
    batch_size: int = 256
    made_by: Mapping[str, Any] = field(default_factory=dict, repr=False)
    first: int = 0  # the number of the first image, a seed where that is known

    @cached_property
    def order(self) -> Tensor:
        """The images' numbers in their order here."""
        if self.made_by:
            return torch.arange(len(self.data))
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))

    @cached_property
    def conditions(self) -> Unconditional:
        """Their classes, if they have any."""
        if self.data.labels is None:
            return Unconditional()
        classes = torch.from_numpy(self.data.labels)[self.order]
        number = max(self.num_classes, self.data.num_classes)
        in_turn = torch.equal(classes, torch.arange(len(classes)) % number)
        return Labelled(labels_given=classes, num_classes=number, period=number if in_turn else 1)

    def __call__(self, seeds: Sequence[int], cond: Tensor | None = None) -> Made:
        """The images with these numbers."""
        rows = self.order[torch.as_tensor(seeds, dtype=torch.int64) - self.first].numpy()
        nearby = np.sort(rows)  # the disk is read in its own order
        images = torch.from_numpy(np.array(self.data.images[nearby]))
        return Made(images[torch.from_numpy(np.searchsorted(nearby, rows))], self.made_by.get("nfe", 0))

    def computing(self) -> AbstractContextManager[None]:
        """There is nothing to compute."""
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """A recipe's part of the passport: what is known of what made them, and what they are."""
        known = {key: self.made_by[key] for key in KEPT if key in self.made_by}
        return {"sampler": {"name": GIVEN}, "guidance": None, **known, "images": {"n": len(self.data), "sha256": self.data.sha256}}

    def recipe(self, *way: Any, batch_size: int | None = None, precision: str | None = None, graphs: bool = False) -> Self:
        """Itself, in the place of `Model.recipe`: there is no way to sample."""
        return replace(self, batch_size=batch_size or self.batch_size)

    @property
    def ema(self) -> Any:
        """Which average of the weights made them, where that is known."""
        return self.made_by.get("ema")

    @property
    def step(self) -> int:
        """The training step of the model that made them; 0 where it is not known."""
        return self.made_by.get("step", 0)

    @property
    def weights(self) -> str | None:
        """The hash of the weights that made them, where it is known."""
        return self.made_by.get("weights")


def given(
    path: str, cache: str, data: RealImages, metrics: Mapping[str, Any], typed: Collection[str]
) -> tuple[GivenImages, dict[str, Any]]:
    """The images at `path`, which are compared with `data`, and the stages of metrics, with n the number of these images unless another is
    typed. Raises UserError for more."""
    stored = StoredImages(root=path, cache=cache)
    images = stored.load()
    sized = {
        name: stage if "n" not in stage or {"metric.n", f"metric.{name}.n"} & set(typed) else stage | {"n": len(images)}
        for name, stage in metrics.items()
    }
    numbers = {stage.get("n", len(images)) for stage in sized.values()}
    if more := [n for n in numbers if n > len(images)]:
        raise UserError(f"{path} holds {len(images)} images, and metric.n={more[0]} asks for more.")
    made_by = said_of(stored.path) if numbers == {len(images)} else {}
    classes = 0 if data.labels is None else int(data.labels.max()) + 1
    first = made_by["seeds"]["seed"] if made_by else 0
    return GivenImages(images, stored.path, classes, made_by=made_by, first=first), sized


def said_of(path: Path) -> dict[str, Any]:
    """The recipe in an npz or zip of sample.py, of images as a metric would have asked for; nothing of others. Raises UserError for a
    damaged one."""
    said = recipe_in(path) if path.suffix.lower() in FILES else None
    if said is None or not all(isinstance(said.get(key), kind) for key, kind in SAID.items()):
        return {}
    if not all(isinstance(said[key], kind) for key, kind in OPTIONAL.items() if key in said) or not is_sampler(said["sampler"]):
        return {}
    seed, usual = said["seeds"].get("seed"), all(key in said and said[key] is None for key in ("classes", "size"))
    counts = all(map(is_count, (said["step"], said["nfe"], seed)))
    return said if usual and "prompts" not in said and counts and seed < 2**32 else {}


def reference(path: Path, cache: str) -> RealImages:
    """The real images at `path`: statistics in an npz, with the images beside them, or images."""
    if path.suffix.lower() != ".npz":
        return StoredImages(root=path, cache=cache).load()
    there = headers(path)
    pictures = StoredImages(root=path, cache=cache).load() if there.keys() & ARRAYS.keys() else None
    if pictures is not None and not set(KEYS["features"]) <= there.keys():
        return pictures
    return read_statistics(path, pictures)


def keep_statistics(data: RealImages, metrics: Mapping[str, Any], device: torch.device, file: Path) -> None:
    """Write the mean and the covariance of the real images' features, as these metrics compare them, to `file`, by all ranks together.

    Raises UserError for metrics that compare something else, or features of several networks."""
    if isinstance(data, Statistics):
        raise UserError(f"{data.path} holds statistics already: give the images that they are to be of.")
    distances = list(build_stages(metrics, "metric").values())
    for metric in distances:
        if not isinstance(metric, FrechetDistance):
            raise UserError(f"{metric.name} compares no mean and covariance: say metric=fid, or metric=[fid,sfid].")
        metric.setup(data, device)
    if len({metric.extractor.weights_hash for metric in distances}) != 1:
        raise UserError("A file holds the statistics of one network's features: say one metric, as metric=fid, or metric=[fid,sfid].")
    first = distances[0]
    if rank_and_world()[0] == 0:
        write_statistics(file, {metric.layer: metric.reference for metric in distances}, first.extractor, data)
    log.info("mean and covariance of %s of %d images of %s in %s", first.extractor.name, first.reference.n, data.name, file)
