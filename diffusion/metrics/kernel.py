"""The kernel distance: KID in the Inception network's features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.base import FeatureMetric, Numbers, on_float64
from diffusion.metrics.cache import tensors_hash
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.reference import ImageSet, reference_features


def mmd2(x: Tensor, y: Tensor, chunk: int = 4096) -> Tensor:
    """The unbiased squared maximum mean discrepancy under k(a, b) = (a.b/d + 1)^3 (Bińkowski et al. 1801.01401, eq. 4), [], float64.

    mean over i != j of k(x_i, x_j), plus that of y, minus twice the mean of k(x_i, y_j). x [n, d], y [m, d]."""
    x, y = on_float64(x), on_float64(y)

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        return sum(((rows @ b.T / a.shape[1] + 1) ** 3).sum() for rows in a.split(chunk))

    def within(a: Tensor) -> Tensor:
        return (kernel_sum(a, a) - ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


def subset_distances(x: Tensor, y: Tensor, subsets: int, size: int, seed: int) -> Tensor:
    """`mmd2` of `subsets` pairs of subsets of `size` rows, drawn without replacement by a generator of their own: [subsets], float64."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]

    return torch.stack([mmd2(drawn(x), drawn(y)) for _ in range(subsets)])


class KernelDistance(FeatureMetric):
    """KID (Bińkowski et al. 1801.01401): the mean of the unbiased squared MMD over `subsets` pairs of subsets of `subset_size` images, and
    under NAME/std its standard deviation over the subsets. It may be negative. Unlike a Fréchet distance it has no bias in n.

    With `groups`, NAME/error is the standard error of the MMD of all images at once, which the mean over subsets approaches. At most
    `real` images of the data set are used. Raises ValueError, at setup too, for a subset larger than either set."""

    words = ("kd",)
    standard = ("kid",)

    def __init__(
        self,
        extractor: Extractor,
        n: int,
        cache: str | Path,
        groups: int = 0,
        subsets: int = 100,
        subset_size: int = 1000,
        real: int | None = 50_000,
        seed: int = 0,
    ) -> None:
        super().__init__(extractor, n, cache, groups)
        self.subsets, self.size, self.real, self.seed = subsets, subset_size, real, seed
        self.require_room(n, "generated")

    def require_room(self, count: int, which: str) -> None:
        """Raises ValueError if `count` images are fewer than a subset."""
        if count < self.size:
            raise ValueError(f"{self.name} draws subsets of {self.size} images from {count} {which} ones: lower metric.subset_size.")

    def refer(self, imageset: ImageSet) -> int:
        self.reference = reference_features(imageset, self.extractor, self.cache, self.real)
        self.statistics = tensors_hash({"features": self.reference})
        self.require_room(len(self.reference), "real")
        return len(self.reference)

    def statistic(self, parts: list[Tensor]) -> Tensor:
        return mmd2(torch.cat(parts), self.reference)[None]

    def compute(self) -> Numbers:
        (rows,), parts = self.gathered()
        drawn = subset_distances(rows, self.reference, self.subsets, self.size, self.seed)
        return {self.name: drawn.mean().item(), f"{self.name}/std": drawn.std(unbiased=False).item()} | self.errors(parts)

    def settings(self) -> dict[str, Any]:
        return {"subsets": self.subsets, "subset_size": self.size, "seed": self.seed}
