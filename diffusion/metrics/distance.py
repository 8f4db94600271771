"""The Fréchet distance of generated images to a data set, over all ranks, at n images and extrapolated to infinitely many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.base import FeatureMetric, Numbers
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Moments, frechet_distance, merged, root
from diffusion.metrics.reference import RealImages, statistics_hash
from diffusion.metrics.statistics import Statistics, reference_gaussian
from diffusion.support.ranges import Several, Some
from diffusion.support.ranks import dealt_numbers


class FrechetDistance(FeatureMetric[Moments]):
    """The Fréchet distance between the features of n generated images and those of a data set.

        metric = FrechetDistance(ResNet56(weights="resnet56.th"), n=10_000, cache=".cache")

    `name`, under which the number is logged, is the extractor's word and n: "fd-digits@1k", "fid@50k". Features are not kept, only
    their moments. Raises ValueError for n below 2.
    """

    words = ("fd",)
    standard = ("fid",)
    root: Tensor | None

    def row_width(self, imageset: RealImages) -> int:
        if isinstance(imageset, Statistics):  # whose images, if there are any, are of no account here
            return imageset.gaussian(self.extractor, self.layer).mean.numel()
        return super().row_width(imageset)

    def refer(self, imageset: RealImages) -> int | None:
        self.reference = reference_gaussian(imageset, self.extractor, self.cache, self.layer)
        self.statistics, self.root = statistics_hash(self.reference), None
        return self.reference.n

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device; b may be 0. Does not wait for a GPU."""
        if len(images) == 0:
            return
        rows = self.store(images)[self.layer]
        group = self.group(dealt_numbers(self.count, len(rows)))
        for g, part in enumerate(self.parts):
            own = (group == g).argwhere()[:, 0].to(rows.device, non_blocking=True)  # of a mask a GPU would be asked how long it is
            part.update(rows[own] if len(self.parts) > 1 else rows)
        self.count += len(rows)

    def compute(self) -> Numbers:
        """The distance over all ranks' images, on every rank, with its standard error if there are groups; may be called again. All ranks
        must call it. Raises ValueError unless all ranks together were given exactly n images."""
        parts = [part.all_reduce() for part in self.parts]
        self.require_n(sum(part.n for part in parts))
        return self.values(parts, parts)

    def statistic(self, parts: Sequence[Moments]) -> Tensor:
        return torch.tensor([self.distance(merged(parts))], dtype=torch.float64)

    def distance(self, moments: Moments) -> float:
        """The distance of these moments to the reference, whose root is taken once."""
        self.root = root(self.reference) if self.root is None else self.root
        return frechet_distance(self.reference, moments, self.root)

    def reset(self) -> None:
        super().reset()
        self.parts, self.count = [Moments(self.width, self.extractor.device) for _ in range(self.groups or 1)], 0


class SpatialFrechetDistance(FrechetDistance):
    """sFID (Nash et al. 2103.03841): the Fréchet distance of the Inception network's 7x17x17 features before pooling, which see where
    things are."""

    words = ("sfd",)
    standard = ("sfid",)
    layer = "spatial"


class FrechetInfinity(FrechetDistance):
    """FID-infinity (Chong & Forsyth 1911.07023, sec. 4): the distance of m images is nearly a + b/m, and the result is a.

    The n images fall into `groups` parts with an even share of each class; the distances of unions of them, of each size from half of the
    parts to all, taken in turn, are fitted by least squares in 1/m. The standard error is the jackknife's, of the whole fit. Raises
    ValueError for fewer than 4 groups."""

    words = ("fd-infinity",)
    standard = ("fid-infinity",)

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 10) -> None:
        if groups < 4:
            raise ValueError(f"metric.groups={groups} is too few to extrapolate from: use at least 4.")
        super().__init__(extractor, n, cache, groups)

    def statistic(self, parts: Sequence[Moments]) -> Tensor:
        values, inverse, start = [], [], 0
        for size in range((len(parts) + 1) // 2, len(parts) + 1):
            chosen = merged([parts[(start + i) % len(parts)] for i in range(size)])
            values.append(self.distance(chosen))
            inverse.append(1 / chosen.n)
            start += size
        return intercept(torch.tensor(inverse, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))[None]

    def settings(self) -> dict[str, Any]:
        return {"groups": self.groups, "parts": "an even share of each class"}


def intercept(x: Tensor, y: Tensor) -> Tensor:
    """a of the least-squares line y = a + b x."""
    centred = x - x.mean()
    slope = (centred * y).sum() / centred.square().sum()
    return y.mean() - slope * x.mean()
