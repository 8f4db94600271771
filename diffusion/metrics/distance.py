"""The Fréchet distance of generated images to a data set, over all ranks, at n images and extrapolated to infinitely many."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.base import Numbers, home
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import FeatureMetric
from diffusion.metrics.frechet import Moments, frechet_distance, merged, root, root_within
from diffusion.metrics.reference import RealImages, statistics_hash
from diffusion.metrics.statistics import Statistics, reference_gaussian
from diffusion.support.ranges import Several, Some
from diffusion.support.ranks import dealt_numbers


class FrechetDistance(FeatureMetric[Moments]):
    """The Fréchet distance between the features of n generated images and those of a data set.

        metric = FrechetDistance(ResNet56(weights="resnet56.th"), n=10_000, cache=".cache")

    `name`, under which the number is logged, is the extractor's word and n: "fd-digits@1k", "fid@50k". Features are not kept, only
    their moments: the states `count` [G], `mean` [G, d] and `scatter` [G, d, d] of the G groups. Raises ValueError for n below 2.
    """

    words = ("fd",)
    standard = ("fid",)
    count: Tensor
    mean: Tensor
    scatter: Tensor
    root: Tensor | None
    root_here: Tensor

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0) -> None:
        super().__init__(extractor, n, cache, groups)
        for state in ("count", "mean", "scatter"):  # their shapes are known after setup; `reset` makes them
            self.add_state(state, torch.zeros(0, dtype=torch.float64))

    def row_width(self, imageset: RealImages) -> int:
        if isinstance(imageset, Statistics):  # whose images, if there are any, are of no account here
            return imageset.gaussian(self.extractor, self.layer).mean.numel()
        return super().row_width(imageset)

    def refer(self, imageset: RealImages) -> int | None:
        self.reference = reference_gaussian(imageset, self.extractor, self.cache, self.layer)
        self.statistics, self.root = statistics_hash(self.reference), None
        return self.reference.n

    @property
    def parts(self) -> list[Moments]:
        """The moments of each group, over the states."""
        return [Moments(self.width, over=states) for states in zip(self.count, self.mean, self.scatter, strict=True)]

    def hold(self, parts: Sequence[Moments]) -> None:
        """Have these moments as states."""
        self.count, self.mean, self.scatter = (torch.stack([getattr(p, state) for p in parts]) for state in ("count", "mean", "scatter"))

    def add(self, layers: Mapping[str, Tensor], labels: Tensor | None) -> None:
        rows, parts = layers[self.layer], self.parts
        group = self.group(dealt_numbers(self.seen, len(rows)))
        for g, part in enumerate(parts):
            own = (group == g).argwhere()[:, 0].to(rows.device, non_blocking=True)  # of a mask a GPU would be asked how long it is
            part.update(rows[own] if len(parts) > 1 else rows)
        self.seen += len(rows)

    def gather(self) -> None:
        self.hold([part.all_reduce() for part in self.parts])

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Add another metric's states, for `merge_state`."""
        for part, *other in zip(self.parts, *(incoming_state[state] for state in ("count", "mean", "scatter")), strict=True):
            part.merge(Moments(self.width, over=(other[0], other[1], other[2])))

    def compute(self) -> Numbers:
        """The distance over all ranks' images, on every rank, with its standard error if there are groups; may be called again. All ranks
        must call it. Raises ValueError unless all ranks together were given exactly n images."""
        self.require_n(int(self.count.sum()))
        parts = self.parts
        self.root_here = self.root_for(parts)
        return self.values(parts, parts)

    def root_for(self, parts: Sequence[Moments]) -> Tensor:
        """The root for distances of all n images and of parts of them; of more than dimensions it is the same each time, and taken once."""
        if self.groups and self.n <= self.width:
            return root_within(self.reference, merged(parts))
        self.root = root(self.reference.cov) if self.root is None else self.root
        return self.root

    def statistic(self, parts: Sequence[Moments]) -> Tensor:
        return torch.tensor([frechet_distance(self.reference, merged(parts), self.root_here)], dtype=torch.float64)

    def reset(self) -> None:
        super().reset()
        zeros, groups = partial(torch.zeros, dtype=torch.float64, device=home(self.device)), self.groups or 1
        self.count, self.mean = zeros(groups), zeros(groups, self.width)
        self.scatter, self.seen = zeros(groups, self.width, self.width), 0


class SpatialFrechetDistance(FrechetDistance):
    """sFID (Nash et al. 2103.03841): the Fréchet distance of the Inception network's 7x17x17 features before pooling, which see where
    things are."""

    words = ("sfd",)
    standard = ("sfid",)
    layer = "spatial"


class FrechetInfinity(FrechetDistance):
    """FID-infinity (Chong & Forsyth 1911.07023, sec. 4): the distance of m images is nearly a + b/m, and the result is a.

    The n images fall into G = `groups` parts with an even share of each class. The line goes through the distance of all n, and the mean of
    those of all but each part, of n - n/G: a = G all - (G - 1) mean (which is Quenouille's correction of a bias). All parts are treated
    alike, as the jackknife of a, which is the standard error, asks for. Raises ValueError for fewer than 4 groups."""

    words = ("fd-infinity",)
    standard = ("fid-infinity",)

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 10) -> None:
        if groups < 4:
            raise ValueError(f"metric.groups={groups} is too few to extrapolate from: use at least 4.")
        super().__init__(extractor, n, cache, groups)

    def values(self, whole: Sequence[Moments], groups: Sequence[Moments]) -> Numbers:
        self.known: dict[frozenset[Moments], Tensor] = {}  # the jackknife asks for each union without two parts twice
        return super().values(groups, groups)

    def statistic(self, parts: Sequence[Moments]) -> Tensor:
        fewer = torch.stack([self.of_union([*parts[:g], *parts[g + 1 :]]) for g in range(len(parts))])
        return len(parts) * self.of_union(parts) - (len(parts) - 1) * fewer.mean(0)

    def of_union(self, parts: Sequence[Moments]) -> Tensor:
        """The distance [1] of all images in these parts."""
        if (key := frozenset(parts)) not in self.known:
            self.known[key] = super().statistic(parts)
        return self.known[key]

    def settings(self) -> dict[str, Any]:
        return {"groups": self.groups, "parts": "an even share of each class", "line": "through all parts, and all but one"}
