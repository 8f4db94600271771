"""The contract of metrics, and the base of those that compare features of images."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from diffusion.conditions import Unconditional
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.reference import RealImages, facts
from diffusion.support.errors import UserError
from diffusion.support.ranges import Several, Some
from diffusion.support.ranks import gather_dealt
from diffusion.typing import Codec, Conditions, Denoise

Numbers = float | dict[str, float]
Part = TypeVar("Part")  # the form in which a statistic takes a part of the images: their features [n, d], or sums over them
UNCONDITIONAL = Unconditional()


class Metric(ABC):
    """The contract. `name` is the key its (first) number is recorded under, n how many generated images it wants.

        metric.setup(imageset, device)            # once, on all ranks
        metric.update(images, labels)             # this rank's share, in any chunks: uint8 [b, h, w, c], classes [b] or None
        metric.numbers()                          # on all ranks
        metric.reset()                            # before the next n images

    Images are dealt to the ranks like cards: image i is on rank i mod world, in order."""

    name: str
    n: Several
    higher: ClassVar[bool] = False  # is better

    @abstractmethod
    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        """Move to `device` and take what the metric needs from the real images; all ranks must call it. `conditions` are those of the
        images that will be generated."""

    @abstractmethod
    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device; b may be 0."""

    @abstractmethod
    def compute(self) -> Numbers:
        """The number over all ranks' images, on every rank, or several by name; may be called again. All ranks must call it."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the generated images."""

    @abstractmethod
    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""

    def asks(self, conditions: Conditions) -> Conditions:
        """The conditions that its images are asked for by: those of the model's own way, but for a metric with questions of its own."""
        return conditions

    def numbers(self) -> dict[str, float]:
        """The result of `compute` by the names that it is recorded under; the first is `name`."""
        result = self.compute()
        return result if isinstance(result, dict) else {self.name: result}

    def model(self, denoiser: Denoise, codec: Codec, conditions: Conditions = UNCONDITIONAL) -> None:
        """Take the (guided) denoiser that made the images, before `compute`; only a metric of the model itself, such as a likelihood, uses
        it."""
        return None

    def resized(self, n: int) -> Self | None:
        """The same metric of n images, sharing its network; None for one that looks at no images."""
        if self.n == 0:
            return None
        other = copy(self)
        other.name_by(n)
        other.reset()
        return other

    def name_by(self, n: int) -> None:
        """Become a metric of n images, with the name that says so. Raises ValueError for too few of them."""
        raise ValueError(f"{self.name} is a number of {self.n} images and cannot be one of {n}.")

    def picture(self) -> Tensor | None:
        """A picture of the result, uint8 [h, w, 3], after `compute`; None for most metrics."""
        return None

    def facts(self) -> dict[str, Any]:
        """Results that are not single numbers, such as lists, as plain data by names that begin with NAME/; after `compute`."""
        return {}


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

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The extractor's layers by name for uint8 images [b, h, w, c]: those of the last call if the images are."""
        last = self.images
        if last is None or last.device != images.device or not torch.equal(last, images):
            self.images, self.outputs = images, self.extractor.outputs(images)
        return self.outputs

    def forget(self) -> None:
        """Let go of the last images."""
        self.images, self.outputs = None, {}


def standard_errors(statistic: Callable[[list[Part]], Tensor], parts: Sequence[Part]) -> Tensor:
    """The delete-a-group jackknife's standard errors of the values [k] of `statistic`, over the images drawn (Efron & Tibshirani 1993,
    eq. 11.5, with groups for single images): sqrt((G - 1)/G sum_g (value without g - their mean)^2). The weights of the model and the
    real images are taken as they are. Unlike the bootstrap it repeats no image, which would change a distance."""
    values = torch.stack([statistic([*parts[:g], *parts[g + 1 :]]) for g in range(len(parts))])
    return ((len(parts) - 1) * (values - values.mean(0)).square().mean(0)).sqrt()


class FeatureMetric(Metric, Generic[Part]):
    """A metric that compares the features of n generated images with those of a data set.

    A subclass has the `words` for its numbers (`standard` are those used with the FID Inception network), the `layer` of the features, and
    `statistic(parts) -> values [k]` of parts of the images. With `groups`, each number has a standard error from as many groups of images,
    under NAME/error; which image is in which (see `dealt`) follows from its number, whatever the batches and ranks. Raises ValueError for n
    below 2, and for 1 group or more than n / 2."""

    words: ClassVar[tuple[str, ...]]
    standard: ClassVar[tuple[str, ...]] = ()
    layer: ClassVar[str] = "features"
    statistics = ""  # the hash of the reference statistics; empty where there are none
    reference_facts: dict[str, Any]

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0) -> None:
        self.cache, self.groups, self.extractor = cache, groups, extractor
        self.name_by(n)
        self.store, self.width = FeatureStore(extractor), 0  # until setup
        self.conditions: Conditions = UNCONDITIONAL
        self.reset()

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
        self.store = FeatureStore.of(self.extractor.to(device))
        self.extractor = self.store.extractor
        self.width, self.conditions = self.row_width(imageset), conditions
        self.reference_facts = facts(imageset, self.refer(imageset))
        self.reset()

    def row_width(self, imageset: RealImages) -> int:
        """Numbers in the layer, for images like these. Raises UserError if the extractor cannot take images of this shape."""
        shape = imageset.images.shape
        if len(shape) != 4:
            raise UserError(f"{self.name} looks at pictures, and {imageset.name} holds vectors; say metric=sliced_wasserstein.")
        self.extractor.check(shape)
        return self.extractor.width(self.layer, shape)

    @abstractmethod
    def refer(self, imageset: RealImages) -> int | None:
        """Get the reference that the statistic compares with, set `statistics` to its hash if there is one, and return its number of real
        images, None where it is not known."""

    @abstractmethod
    def statistic(self, parts: Sequence[Part]) -> Tensor:
        """The numbers [k], float64, of the images in `parts` together."""

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device; b may be 0. Does not wait for a GPU."""
        if len(images):
            rows = self.store(images)[self.layer]
            if rows.shape[1] != self.width:
                data, shape = self.reference_facts["name"], list(images.shape[1:])
                raise UserError(f"{self.name} compares pictures of one shape: these are {shape}, and those of {data} are not.")
            self.rows.append(rows)

    def own_rows(self) -> Tensor:
        """The features [b, d] of this rank's images, in order."""
        return torch.cat([*self.rows, torch.empty(0, self.width, device=self.extractor.device)])

    def all_rows(self) -> Tensor:
        """The features [n, d] of all ranks' images, in order, on every rank. Raises ValueError unless there are n."""
        rows = gather_dealt(self.own_rows())
        self.require_n(len(rows))
        return rows

    def parts_of(self, rows: Tensor) -> list[Tensor]:
        """The rows [n, ...] of all images, in order, as one tensor for each group."""
        group = self.group(torch.arange(self.n)).to(rows.device)
        return [rows[group == g] for g in range(self.groups)]

    def group(self, numbers: Tensor) -> Tensor:
        """The groups of the images with these numbers; 0 without groups."""
        return dealt(numbers, self.n, self.conditions.period) % (self.groups or 1)

    def require_n(self, count: int) -> None:
        """Raises ValueError unless `count` is n: the name says n."""
        if count != self.n:
            raise ValueError(f"{self.name} is a number of {self.n} images, and {count} were given.")

    def values(self, whole: Sequence[Part], groups: Sequence[Part]) -> Numbers:
        """The statistic of all images, with its standard errors over the groups: one number, or several by name."""
        values = dict(zip(self.keys, self.statistic(whole).tolist(), strict=True)) | self.errors(groups)
        return values if len(values) > 1 else values[self.name]

    def errors(self, parts: Sequence[Part]) -> dict[str, float]:
        """The numbers' standard errors by name; none without groups."""
        if not self.groups:
            return {}
        with warnings.catch_warnings():  # the statistic of all images has already warned if they are too few
            warnings.simplefilter("ignore")
            errors = standard_errors(self.statistic, parts).tolist()
        return dict(zip([f"{key}/error" for key in self.keys], errors, strict=True))

    def intervals(self) -> dict[str, str]:
        """The meaning of NAME/error and the like, in words for the passport."""
        meaning = f"standard error over the images drawn, delete-a-group jackknife with {self.groups} groups that share out each class"
        return {"error": meaning} if self.groups else {}

    def reset(self) -> None:
        """Forget the generated images; the reference stays."""
        self.rows: list[Tensor] = []
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


class RowMetric(FeatureMetric[Tensor]):
    """A metric whose statistic takes the features themselves: `statistic(parts)`, each part [n_i, d]."""

    def gathered(self) -> tuple[Tensor, list[Tensor]]:
        """(the rows [n, ...] of all ranks' images, in order; those of each group). Raises ValueError unless there are n."""
        rows = self.all_rows()
        return rows, self.parts_of(rows)

    def compute(self) -> Numbers:
        """The number, or several by name, over all ranks' images, on every rank; may be called again. Raises ValueError as `gathered`."""
        rows, groups = self.gathered()
        return self.values([rows], groups)


def dealt(numbers: Tensor, n: int, classes: int) -> Tensor:
    """The positions of images with these `numbers` < n when all n are sorted by class; image i is of class i mod `classes`.

    Groups dealt from this order have an even share of each class. Dealt from the images' own order, ten groups of images of ten classes
    would be the classes themselves, and their differences would not be sampling errors."""
    kind = numbers % classes
    return kind * (n // classes) + kind.clamp(max=n % classes) + numbers // classes


def on_float64(tensor: Tensor) -> Tensor:
    """In float64, on the same device unless that has none (Apple's GPU)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def abbreviated(n: int) -> str:
    """Whole thousands as "k": 500, 1k, 1797, 50k."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
