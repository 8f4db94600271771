"""The base of the metrics that compare features of images."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from diffusion.metrics.base import UNCONDITIONAL, Metric, Numbers, abbreviated
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.intervals import Part, dealt
from diffusion.metrics.reference import RealImages, facts
from diffusion.support.errors import UserError
from diffusion.support.ranges import Several, Some
from diffusion.typing import Conditions


@dataclass(frozen=True)
class Features:
    """Images by what an extractor made of them, in the place of the images: its layers [b, ...] by name."""

    layers: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.layers.values())))

    def __getitem__(self, which: Tensor | slice) -> "Features":
        return Features({name: rows[which] for name, rows in self.layers.items()})


class FeatureStore:
    """One network for all the metrics that use it, run once on a batch that several of them are given in turn. Metrics keep the tensors
    that this returns, so that they share one copy."""

    open: ClassVar[WeakValueDictionary[tuple, "FeatureStore"]] = WeakValueDictionary()

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.images: Tensor | None = None
        self.outputs: dict[str, Tensor] = {}

    @classmethod
    def of(cls, extractor: Extractor) -> "FeatureStore":
        """The store of this network on this device; the first extractor to ask stands in for those with the same weights."""
        key = (type(extractor), extractor.name, extractor.weights_hash, str(extractor.device))
        store = cls.open.get(key)
        if store is None:
            store = cls.open[key] = cls(extractor)
        return store

    def __call__(self, images: Tensor | Features) -> dict[str, Tensor]:
        """The extractor's layers by name for uint8 images [b, h, w, c]: those of the last call if the images are, and those that are known
        of `Features`."""
        if isinstance(images, Features):
            return {name: rows.to(self.extractor.device, non_blocking=True) for name, rows in images.layers.items()}
        last = self.images
        if last is None or last.device != images.device or not torch.equal(last, images):
            self.images, self.outputs = images, self.extractor.outputs(images)
        return self.outputs

    def forget(self) -> None:
        """Let go of the last images."""
        self.images, self.outputs = None, {}


class FeatureMetric(Metric, Generic[Part]):
    """A metric that compares the features of n generated images with those of a data set.

    A subclass has the `words` for its numbers (`standard` are those used with the FID Inception network), the `layer` of the features, and
    `statistic(parts) -> values [k]` of parts of the images. With `groups`, each number has a standard error from as many groups of images,
    under NAME/error; which image is in which (see `dealt`) follows from its number, whatever the batches and ranks. Raises ValueError for n
    below 2, and for 1 group or more than n / 2."""

    words: ClassVar[tuple[str, ...]]
    standard: ClassVar[tuple[str, ...]] = ()
    layer: ClassVar[str] = "features"
    of_features: ClassVar[bool] = True  # whether features can stand in the place of the images
    statistics = ""  # the hash of the reference statistics; empty where there are none
    reference_facts: dict[str, Any]
    shape: list[int] | None  # of the real images, where there are any

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0) -> None:
        super().__init__()
        self.cache, self.groups, self.extractor = cache, groups, extractor
        self.name_by(n)
        self.store, self.width = FeatureStore(extractor), 0  # until setup
        self.conditions: Conditions = UNCONDITIONAL

    def name_by(self, n: int) -> None:
        """Be a metric of n images. Raises ValueError for too few of them."""
        words = self.standard if self.extractor.frechet == "fid" and self.standard else [f"{w}-{self.extractor.name}" for w in self.words]
        self.keys = [f"{word}@{abbreviated(n)}" for word in words]
        self.name, self.n = self.keys[0], n
        if n < 2:
            raise ValueError(f"{self.name} needs at least 2 images: metric.n={n} is too few.")
        if self.groups and not 2 <= self.groups <= n // 2:
            raise ValueError(f"metric.groups={self.groups} cannot give a standard error from n={n} images: use 0, or 2 to {n // 2}.")

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        """Move to `device` and get the reference statistics; all ranks must call it. Raises UserError as `row_width`."""
        self.to(device)
        self.shape = None
        self.width, self.conditions = self.row_width(imageset), conditions
        self.reference_facts = facts(imageset, self.refer(imageset))
        self.reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """The network goes where the states go, to the one that other metrics share there."""
        super()._apply(fn, *args, **kwargs)
        self.store = FeatureStore.of(self.extractor.to(self.device))
        self.extractor = self.store.extractor
        return self

    def row_width(self, imageset: RealImages) -> int:
        """Numbers in the layer, for images like these. Raises UserError if the extractor cannot take images of this shape."""
        shape = imageset.images.shape
        if len(shape) != 4:
            raise UserError(f"{self.name} looks at pictures, and {imageset.name} holds vectors; say metric=sliced_wasserstein.")
        self.extractor.check(shape)
        self.shape = list(shape[1:])
        return self.extractor.width(self.layer, shape)

    @abstractmethod
    def refer(self, imageset: RealImages) -> int | None:
        """Get the reference that the statistic compares with, set `statistics` to its hash if there is one, and return its number of real
        images, None where it is not known."""

    @abstractmethod
    def statistic(self, parts: Sequence[Part]) -> Tensor:
        """The numbers [k], float64, of the images in `parts` together."""

    @abstractmethod
    def add(self, layers: Mapping[str, Tensor], labels: Tensor | None) -> None:
        """Add images by the extractor's layers [b, ...] and their classes."""

    def update(self, images: Tensor | Features, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device, or their features; b may be 0. Does not wait for a GPU.

        Raises UserError for images of another shape than the real ones, where the layer depends on it."""
        if self.width == 0:
            raise ValueError(f"{self.name} has nothing to compare with yet: call setup(real images, device) first.")
        if len(images) == 0:
            return
        layers = self.store(images)
        shape = list(getattr(images, "shape", layers[self.layer].shape)[1:])
        moved = self.extractor.rigid and isinstance(images, Tensor) and self.shape not in (None, shape)
        if layers[self.layer].shape[1] != self.width or moved:
            data = self.reference_facts["name"]
            raise UserError(
                f"{self.name} compares pictures of one shape: these are {shape}, and those of {data} are {self.shape or 'not'}."
            )
        self.add(layers, labels)

    def parts_of(self, rows: Tensor) -> list[Tensor]:
        """The rows [n, ...] of all images, in order, as one tensor for each group."""
        group = self.group(torch.arange(self.n)).to(rows.device)
        return [rows[group == g] for g in range(self.groups)]

    def group(self, numbers: Tensor) -> Tensor:
        """The groups of the images with these numbers; 0 without groups."""
        return dealt(numbers, self.n, self.conditions.period) % (self.groups or 1)

    def values(self, whole: Sequence[Part], groups: Sequence[Part]) -> Numbers:
        """The statistic of all images, with its standard errors over the groups: one number, or several by name."""
        values = dict(zip(self.keys, self.statistic(whole), strict=True)) | self.errors(groups)
        return values if len(values) > 1 else values[self.name]

    def errors(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The numbers' standard errors by name; none without groups."""
        if not self.groups:
            return {}
        with warnings.catch_warnings():  # the statistic of all images has already warned if they are too few
            warnings.simplefilter("ignore")
            return self.jackknifed(self.keys, self.statistic, parts)

    def intervals(self) -> dict[str, str]:
        """The meaning of NAME/error and the like, in words for the passport."""
        meaning = f"standard error over the images drawn, delete-a-group jackknife with {self.groups} groups that share out each class"
        return {"error": meaning} if self.groups else {}

    def reset(self) -> None:
        """Forget the generated images; the reference stays."""
        super().reset()
        self.store.forget()

    def settings(self) -> dict[str, Any]:
        """The other settings that the numbers depend on, as plain data for the passport."""
        return {}

    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""
        return {
            "metric": self.name,
            "n": self.n,
            "quantisation": "uint8",
            "extractor": self.extractor.describe(),
            "reference": self.reference_facts,
            "statistics": self.statistics,
            "settings": self.settings() or None,
            "intervals": self.intervals() or None,
        }


class FeatureRows(FeatureMetric[Part]):
    """A metric that keeps the features of all images, or what `add` makes of them: its state `rows` [n, columns]."""

    rows: list[Tensor]

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0) -> None:
        super().__init__(extractor, n, cache, groups)
        self.keep("rows", (0,))

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        super().setup(imageset, device, conditions)
        self.keep("rows", (self.columns(),))

    def columns(self) -> int:
        """Numbers in a row."""
        return self.width

    def add(self, layers: Mapping[str, Tensor], labels: Tensor | None) -> None:
        self.rows.append(layers[self.layer])

    def gathered(self) -> tuple[Tensor, list[Tensor]]:
        """(the rows [n, ...] of all images, in order; those of each group). Raises ValueError unless there are n."""
        rows = self.kept("rows")
        self.require_n(len(rows))
        return rows, self.parts_of(rows)


class RowMetric(FeatureRows[Tensor]):
    """A metric whose statistic takes the rows themselves: `statistic(parts)`, each part [n_i, columns]."""

    def compute(self) -> Numbers:
        """The number, or several by name, over all ranks' images, on every rank; may be called again. Raises ValueError as `gathered`."""
        rows, groups = self.gathered()
        return self.values([rows], groups)
