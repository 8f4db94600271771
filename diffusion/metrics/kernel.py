"""The kernel distance: KID in the Inception network's features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.metrics.base import Numbers, on_float64
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import FeatureRows
from diffusion.metrics.reference import RealImages, reference_features
from diffusion.support.hashes import tensors_hash
from diffusion.support.ranges import Few, Seed, Several, Some


def kernel_sum(a: Tensor, b: Tensor, chunk: int = 4096) -> Tensor:
    """The sum of k(a_i, b_j) = (a_i.b_j/d + 1)^3 over all pairs of rows of float64 a [n, d] and b [m, d]: []."""
    return sum((((rows @ b.T / a.shape[1] + 1) ** 3).sum() for rows in a.split(chunk)), a.new_zeros(()))


def own_sum(a: Tensor) -> Tensor:
    """The sum of k(a_i, a_i): []."""
    return ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()


def mmd2(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared maximum mean discrepancy under k(a, b) = (a.b/d + 1)^3 (Bińkowski et al. 1801.01401, eq. 4), [], float64.

    mean over i != j of k(x_i, x_j), plus that of y, minus twice the mean of k(x_i, y_j). x [n, d], y [m, d]."""
    x, y = on_float64(x), on_float64(y)

    def within(a: Tensor) -> Tensor:
        return (kernel_sum(a, a) - own_sum(a)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


class GroupSums(NamedTuple):
    """Kernel sums of one group of n images: `among` [G] with each group, without pairs of an image with itself; `across` [] with the real
    images."""

    number: int
    n: Several
    among: Tensor
    across: Tensor


def group_sums(parts: Sequence[Tensor], real: Tensor) -> list[GroupSums]:
    """The sums of each of the G groups [n_g, d], from which the MMD of any of the groups together follows."""
    parts, real, found = [on_float64(part) for part in parts], on_float64(real), []
    for g, part in enumerate(parts):
        among = torch.stack([kernel_sum(part, other) for other in parts])
        among[g] -= own_sum(part)
        found.append(GroupSums(g, len(part), among, kernel_sum(part, real)))
    return found


def subset_distances(x: Tensor, y: Tensor, subsets: int, size: int, seed: int) -> Tensor:
    """`mmd2` of `subsets` pairs of subsets of `size` rows, drawn without replacement by a generator of their own: [subsets], float64."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]

    return torch.stack([mmd2(drawn(x), drawn(y)) for _ in range(subsets)])


class KernelDistance(FeatureRows[GroupSums]):
    """KID (Bińkowski et al. 1801.01401): the mean of the unbiased squared MMD over `subsets` pairs of subsets of `subset_size` images, and
    under NAME/std its standard deviation over the subsets. It may be negative. Unlike a Fréchet distance it has no bias in n.

    With `groups`, NAME/error is the standard error of the MMD of all n images at once, which the mean over subsets approaches. At most
    `real` images of the data set are used. Raises ValueError, at setup too, for a subset larger than either set."""

    words = ("kd",)
    standard = ("kid",)
    moves = ("reference",)

    def __init__(
        self,
        extractor: Extractor,
        n: Several,
        cache: str | Path,
        groups: Some = 0,
        subsets: Few = 100,
        subset_size: Several = 1000,
        real: Several | None = 50_000,
        seed: Seed = 0,
    ) -> None:
        super().__init__(extractor, n, cache, groups)
        self.subsets, self.size, self.real, self.seed = subsets, subset_size, real, seed
        self.require_room(n, "generated")

    def require_room(self, count: int, which: str) -> None:
        """Raises ValueError if `count` images are fewer than a subset."""
        if count < self.size:
            raise ValueError(f"{self.name} draws subsets of {self.size} images from {count} {which} ones: say metric.subset_size={count}.")

    def refer(self, imageset: RealImages) -> int:
        self.reference = reference_features(imageset, self.extractor, self.cache, self.real)
        self.statistics = tensors_hash({"features": self.reference})
        self.require_room(len(self.reference), "real")
        return len(self.reference)

    def statistic(self, parts: Sequence[GroupSums]) -> Tensor:
        """The MMD of these groups together without the real images' own term, which is the same for all."""
        n, numbers = sum(part.n for part in parts), [part.number for part in parts]
        zero = parts[0].across.new_zeros(())
        among, across = sum((part.among[numbers].sum() for part in parts), zero), sum((part.across for part in parts), zero)
        return (among / (n * (n - 1)) - 2 * across / (n * len(self.reference)))[None]

    def compute(self) -> Numbers:
        """The mean and the deviation over the subsets; otherwise as in `RowMetric`."""
        rows, groups = self.gathered()
        drawn = subset_distances(rows, self.reference, self.subsets, self.size, self.seed)
        errors = self.errors(group_sums(groups, self.reference))
        return {self.name: drawn.mean(), f"{self.name}/std": drawn.std(unbiased=False)} | errors

    def intervals(self) -> dict[str, str]:
        return super().intervals() | {"std": f"standard deviation over the {self.subsets} subsets"}

    def settings(self) -> dict[str, Any]:
        return {"subsets": self.subsets, "subset_size": self.size, "seed": self.seed}
