"""How far generated items are from those of a data set, in the data's own units and with no network: for vectors and pictures alike."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.base import UNCONDITIONAL, Metric, Numbers, abbreviated, home
from diffusion.metrics.intervals import dealt
from diffusion.metrics.reference import RealImages, facts, own_batches, require_images
from diffusion.support.ranges import Few, Seed, Several, Some
from diffusion.support.ranks import gather_rows
from diffusion.typing import Conditions

CHUNK = 4096  # items of the data projected at once


class SlicedWasserstein(Metric):
    """The sliced Wasserstein-2 distance between n generated items and a data set (Bonneel et al. 2015), sliced-wasserstein@n:

        SW_2(P, Q) = sqrt( mean over directions theta, |theta| = 1, of W_2(theta.P, theta.Q)^2 ),
        W_2(p, q)^2 = integral over u in [0, 1] of (F_p^-1(u) - F_q^-1(u))^2,

    with F^-1 the quantiles of the items projected on the line along theta. Items are flattened and in the data's own units, those of
    uint8 divided by 255. The `projections` directions are normalised Gaussian vectors from a generator seeded `seed`. The integral is the
    mean over the n generated quantiles u_i = (i + 1/2) / n, against as many of the data, which `quantiles` interpolates where their number
    differs. For n items of the data itself it is not 0, because n draws are noisy: compare numbers of the same n.

    With `groups`, NAME/error is the standard error by the delete-a-group jackknife, as in `FeatureMetric`. Raises ValueError for n below
    2, no projections, and 1 group or more than n / 2."""

    moves = ("directions", "real")
    rows: list[Tensor]

    def __init__(self, n: Several = 1000, projections: Few = 128, seed: Seed = 0, groups: Some = 10) -> None:
        super().__init__()
        self.projections, self.seed, self.groups = projections, seed, groups
        self.name_by(n)
        if projections < 1:
            raise ValueError(f"{self.name} needs at least one direction: metric.projections={projections} is too few.")
        self.keep("rows", (projections,), torch.float64)

    def name_by(self, n: int) -> None:
        """Be a metric of n items. Raises ValueError for too few of them."""
        self.name, self.n = f"sliced-wasserstein@{abbreviated(n)}", n
        if n < 2:
            raise ValueError(f"{self.name} needs at least 2 items: metric.n={n} is too few.")
        if self.groups and not 2 <= self.groups <= n // 2:
            raise ValueError(f"metric.groups={self.groups} cannot give a standard error from n={n} items: use 0, or 2 to {n // 2}.")

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        """Project the data, each rank its share. Raises ValueError for a set without items."""
        require_images(imageset)
        self.to(device)
        self.conditions = conditions
        self.shape = torch.Size(imageset.images.shape[1:])
        self.directions = directions(math.prod(self.shape), self.projections, self.seed).to(home(self.device))
        self.quantisation = str(imageset.images.dtype)
        self.reference_facts = facts(imageset, len(imageset.images))
        mine = [self.projected(items) for items in own_batches(imageset.images, CHUNK)]
        self.real = torch.cat(gather_rows(torch.cat([*mine, self.directions.new_empty(0, self.projections)]))).sort(0).values
        self.reset()

    def projected(self, items: Tensor) -> Tensor:
        """Items [b, ...] on every line: [b, projections], float64."""
        rows = items.flatten(1).to(self.directions.device, non_blocking=True).double()
        return (rows / 255 if items.dtype == torch.uint8 else rows) @ self.directions.T

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated items as the data hold them, uint8 or float [b, ...] on any device; b may be 0.

        Raises ValueError for items of another shape than the data's."""
        if not len(images):
            return
        if images.shape[1:] != self.shape:
            raise ValueError(f"{self.name} compares with items of shape {list(self.shape)}, and these are {list(images.shape[1:])}.")
        self.rows.append(self.projected(images))

    def compute(self) -> Numbers:
        """The distance of all ranks' items, on every rank, and its standard error; may be called again. All ranks must call it.

        Raises ValueError unless all ranks together were given exactly n items."""
        rows = self.kept("rows")
        self.require_n(len(rows))
        value = self.statistic([rows])[0]
        if not self.groups:
            return value
        group = (dealt(torch.arange(self.n), self.n, self.conditions.period) % self.groups).to(rows.device)
        return {self.name: value} | self.jackknifed([self.name], self.statistic, [rows[group == g] for g in range(self.groups)])

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        """The distance [1] of the items whose projections are in `parts`, each [n_i, projections]."""
        made = torch.cat(list(parts)).sort(0).values
        return (made - quantiles(self.real, len(made))).square().mean().sqrt()[None]

    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""
        meaning = f"standard error over the items drawn, delete-a-group jackknife with {self.groups} groups that share out each class"
        return {
            "metric": self.name,
            "n": self.n,
            "quantisation": self.quantisation,
            "extractor": {},
            "reference": self.reference_facts,
            "statistics": "",
            "settings": {"projections": self.projections, "seed": self.seed},
            "intervals": {"error": meaning} if self.groups else None,
        }


def directions(size: int, count: int, seed: int) -> Tensor:
    """Uniform on the unit sphere: `count` normalised Gaussian vectors, [count, size] float64, from a generator of their own."""
    gaussian = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gaussian / gaussian.norm(dim=1, keepdim=True)


def quantiles(ordered: Tensor, n: int) -> Tensor:
    """The quantiles (i + 1/2) / n of each column of `ordered` [m, k], ascending: [n, k].

    Its j-th number is the quantile (j + 1/2) / m; between two of them it is linear, and beyond the outermost it stays. For n = m the
    numbers themselves."""
    m = len(ordered)
    place = ((2 * torch.arange(n) + 1) * m - n).double().div(2 * n).clamp(0, m - 1)  # exact where n = m
    below = place.floor().long()
    above = (below + 1).clamp(max=m - 1)
    return torch.lerp(ordered[below], ordered[above], (place - below)[:, None].to(ordered))
