"""Fidelity and diversity apart, by nearest neighbours: precision and recall, density and coverage."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.metrics.base import on_float64
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import RowMetric
from diffusion.metrics.reference import RealImages, reference_features
from diffusion.support.hashes import tensors_hash
from diffusion.support.ranges import Few, Several, Some

CHUNK = 1024


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, [n, m], for float64 a [n, d] and b [m, d]."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def radii(points: Tensor, k: int) -> Tensor:
    """The squared distance of each point [n, d] to its k-th nearest other one, [n]."""
    parts = []
    for start in range(0, len(points), CHUNK):
        rows = squared_distances(points[start : start + CHUNK], points)
        rows[torch.arange(len(rows)), start + torch.arange(len(rows))] = torch.inf  # itself
        parts.append(rows.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def counts_inside(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """In how many of the balls of squared `radius` [m] around `centres` [m, d] each point [n, d] lies: [n], float64."""
    return torch.cat([(squared_distances(rows, centres) <= radius).sum(1) for rows in points.split(CHUNK)]).double()


def precision_recall(made: Tensor, real: Tensor, k: int = 3, radius: Tensor | None = None) -> Tensor:
    """[precision, recall] (Kynkäänniemi et al. 1904.06991, eq. 1, 2): the share of made images inside a ball around a real one that
    reaches its k-th nearest neighbour, and the share of real ones inside such a ball around a made one. `radius` is radii(real, k)."""
    radius = radii(real, k) if radius is None else radius
    inside_real, inside_made = counts_inside(made, real, radius) > 0, counts_inside(real, made, radii(made, k)) > 0
    return torch.stack([inside_real.double().mean(), inside_made.double().mean()])


def density_coverage(made: Tensor, real: Tensor, k: int = 5, radius: Tensor | None = None) -> Tensor:
    """[density, coverage] (Naeem et al. 2002.09797, eq. 4, 5): 1/k times the number of real images' balls that a made one is in, on
    average, and the share of real images whose ball holds a made one. `radius` is radii(real, k)."""
    radius = radii(real, k) if radius is None else radius
    nearest = torch.cat([squared_distances(rows, made).amin(1) for rows in real.split(CHUNK)])
    return torch.stack([counts_inside(made, real, radius).mean() / k, (nearest <= radius).double().mean()])


class Neighbours(RowMetric):
    """Shares of images inside balls to the k-th neighbour, counted in float64. At most `real` images of the data set are used.

    Raises ValueError, at setup too, where there are too few images for k neighbours."""

    default_k: ClassVar[int]
    moves = ("reference", "radius")
    radius: Tensor | None

    def __init__(
        self,
        extractor: Extractor,
        n: Several,
        cache: str | Path,
        groups: Some = 0,
        k: Few | None = None,
        real: Several | None = 50_000,
    ) -> None:
        super().__init__(extractor, n, cache, groups)
        self.k, self.real = self.default_k if k is None else k, real
        self.require_neighbours(n - (-(-n // groups) if groups else 0), "generated")

    def require_neighbours(self, count: int, which: str) -> None:
        """Raises ValueError unless each of `count` images has k others."""
        if not 1 <= self.k < count:
            raise ValueError(f"{self.name} needs more than k={self.k} {which} images, and there are {count}; k is at least 1.")

    def refer(self, imageset: RealImages) -> int:
        features = reference_features(imageset, self.extractor, self.cache, self.real)
        self.reference, self.statistics, self.radius = on_float64(features), tensors_hash({"features": features}), None
        self.require_neighbours(len(features), "real")
        return len(features)

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        self.radius = radii(self.reference, self.k) if self.radius is None else self.radius  # of the real images, once
        return self.shares(on_float64(torch.cat(list(parts))))

    @abstractmethod
    def shares(self, made: Tensor) -> Tensor:
        """The two numbers of these features."""

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


class PrecisionRecall(Neighbours):
    """`precision_recall` under precision-EXTRACTOR@n and recall-EXTRACTOR@n."""

    words, default_k, higher_is_better = ("precision", "recall"), 3, True

    def shares(self, made: Tensor) -> Tensor:
        return precision_recall(made, self.reference, self.k, self.radius)


class DensityCoverage(Neighbours):
    """`density_coverage` under density-EXTRACTOR@n and coverage-EXTRACTOR@n."""

    words, default_k, higher_is_better = ("density", "coverage"), 5, True

    def shares(self, made: Tensor) -> Tensor:
        return density_coverage(made, self.reference, self.k, self.radius)
