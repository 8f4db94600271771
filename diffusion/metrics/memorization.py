"""Whether generated images are copies of training images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.metrics.base import Numbers, on_float64
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import Features, RowMetric
from diffusion.metrics.neighbours import squared_distances
from diffusion.metrics.reference import RealImages, batches, reference_features
from diffusion.pictures import tile
from diffusion.support.progress import bar
from diffusion.support.ranges import Few, Fraction, Several, Some
from diffusion.support.ranks import gather_dealt, rank_and_world


def two_nearest(rows: Tensor, known: Tensor, points: Tensor, first: int) -> Tensor:
    """The two nearest points so far of each row: [b, 2, 2], (squared distance, number of the point), nearest first.

    `known` has those among the points before number `first`; `points` [m, d] are those from there on. The two nearest of these are
    found by |a|^2 + |b|^2 - 2 ab, and their distances taken again from the differences, so that a copy is at 0."""
    rows, points = on_float64(rows), on_float64(points)
    near = squared_distances(rows, points).topk(min(2, len(points)), largest=False).indices
    exact = (rows[:, None] - points[near]).square().sum(2)
    both = torch.cat([known, torch.stack([exact, (first + near).to(exact)], -1)], 1)
    return both.gather(1, both[..., 0].topk(2, largest=False).indices[..., None].expand(-1, -1, 2))


class Memorization(RowMetric):
    """The share of n generated images that copy a training image: their nearest training image is less than `ratio` times as far as the
    second nearest (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize"; ratio 1/3).

    NAME/distance is the mean distance to the nearest one, as the root of the mean square over features. The extractor Pixels measures in
    pixels of [-1, 1]. The picture shows the `pairs` images of lowest ratio, each above its nearest training image. With identical training
    images the ratio is 1 and a copy goes unseen: look at the picture and the distance."""

    words = ("memorized",)
    of_features = False
    pairs_picture: Tensor | None  # set by `compute`
    images: list[Tensor]

    def __init__(
        self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0, ratio: Fraction = 1 / 3, pairs: Few = 10
    ) -> None:
        super().__init__(extractor, n, cache, groups)
        self.keep("images", dtype=torch.uint8)
        self.ratio, self.pairs = ratio, min(pairs, n)

    def refer(self, imageset: RealImages) -> int:
        if len(imageset.images) < 2:
            raise ValueError(f"{self.name} compares with at least two training images, and {imageset.name} has {len(imageset.images)}.")
        self.imageset = imageset
        self.keep("images", tuple(imageset.images.shape[1:]), torch.uint8)
        if not self.extractor.cheap:  # made now, by all ranks together
            reference_features(imageset, self.extractor, self.cache)
        return len(imageset.images)

    def real_chunks(self, size: int = 1024) -> Iterator[tuple[int, Tensor]]:
        """The features of the training images in order: yields (number of the first, [m, d])."""
        features = None if self.extractor.cheap else reference_features(self.imageset, self.extractor, self.cache)
        parts = batches(0, len(self.imageset.images), size)
        for start, stop in bar(parts, "searching the real images", len(parts)):
            images = self.imageset.images[start:stop]
            yield start, self.extractor(torch.from_numpy(np.array(images))) if features is None else features[start:stop]

    def update(self, images: Tensor | Features, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c], which are kept for the picture."""
        assert isinstance(images, Tensor)  # see `of_features`
        super().update(images)
        self.images.append(images.cpu())

    def nearest(self, rows: Tensor) -> Tensor:
        """Of each image's features (squared distance to the nearest, its number, squared distance to the second nearest): [n, 3]. Where all
        ranks have the features of all images, each searches for its share of them."""
        rank, world = rank_and_world() if self._is_synced else (0, 1)
        mine = rows[rank::world]
        known = torch.full((len(mine), 2, 2), torch.inf, dtype=torch.float64, device=mine.device)
        for first, points in self.real_chunks():
            known = two_nearest(mine, known, points, first)
        found = torch.stack([known[:, 0, 0], known[:, 0, 1], known[:, 1, 0]], 1)
        return (gather_dealt(found) if world > 1 else found).cpu()

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        return (ratios(torch.cat(list(parts))) < self.ratio).double().mean(0, keepdim=True)

    def compute(self) -> Numbers:
        """The share and the mean distance; otherwise as in `RowMetric`."""
        features = self.kept("rows")
        self.require_n(len(features))
        rows = self.nearest(features)
        distance = (on_float64(rows[:, 0]) / self.width).sqrt().mean()
        self.show(rows)
        return {self.name: self.statistic([rows])[0], f"{self.name}/distance": distance} | self.errors(self.parts_of(rows))

    def show(self, rows: Tensor) -> None:
        """Lay the pairs of lowest ratio side by side."""
        made = self.kept("images").cpu()
        closest = ratios(rows).argsort(stable=True)[: self.pairs]
        real = torch.from_numpy(np.array(self.imageset.images[rows[closest, 1].long().numpy()]))
        self.pairs_picture = tile(torch.cat([made[closest], real]), len(closest))

    def picture(self) -> Tensor | None:
        """The pairs, generated above real, the likeliest copy first."""
        return self.pairs_picture

    def reset(self) -> None:
        super().reset()
        self.pairs_picture = None

    def settings(self) -> dict[str, Any]:
        return {"ratio": self.ratio}


def ratios(rows: Tensor) -> Tensor:
    """Distance to the nearest over that to the second nearest, [n]; 1 where both are 0."""
    return torch.where(rows[:, 2] == 0, 1.0, (rows[:, 0] / rows[:, 2]).sqrt())
