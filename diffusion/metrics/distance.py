"""The Fréchet distance of generated images to a data set, over all ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Moments, frechet_distance
from diffusion.metrics.reference import ImageSet, reference_moments, statistics_hash


class FrechetDistance:
    """The Fréchet distance between the features of n generated images and those of a data set.

        metric = FrechetDistance(ResNet56(weights="resnet56.th"), n=10_000, cache=".cache")
        metric.setup(imageset, device)            # once, on all ranks: reads or makes the reference statistics
        metric.update(images)                     # this rank's share, in any chunks: uint8 [b, h, w, c]
        value = metric.compute()                  # on all ranks
        metric.reset()                            # before the next n images

    `name`, under which the number is logged, is the extractor's word and n: "fd-digits@1k", "fid@50k". Raises ValueError
    for n below 2.
    """

    def __init__(self, extractor: Extractor, n: int, cache: str | Path) -> None:
        if n < 2:
            raise ValueError(f"A Fréchet distance needs at least 2 images: metric.n={n} is too few.")
        self.n = n
        self.cache = cache
        self.extractor = extractor
        self.name = f"{self.extractor.frechet}@{abbreviated(n)}"
        self.reset()

    def setup(self, imageset: ImageSet, device: torch.device | str) -> None:
        """Move to `device` and get the reference statistics; all ranks must call it.

        Raises UserError if the extractor cannot take images of this shape.
        """
        self.extractor.check(imageset.images.shape)
        self.extractor.to(device)
        self.reference = reference_moments(imageset, self.extractor, self.cache)
        self.reference_facts = {
            "name": imageset.name,
            "split": imageset.split,
            "n": self.reference.n,
            "sha256": imageset.sha256,
        }
        self.statistics = statistics_hash(self.reference)
        self.reset()

    def update(self, images: Tensor) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device; b may be 0. Does not wait for a GPU."""
        if len(images):
            self.moments.update(self.extractor(images))

    def compute(self) -> float:
        """The distance over all ranks' images, on every rank; may be called again. All ranks must call it.

        Raises ValueError unless all ranks together were given exactly n images: the name says n.
        """
        moments = self.moments.all_reduce()
        if moments.n != self.n:
            raise ValueError(f"{self.name} is a distance of {self.n} images, and {moments.n} were given.")
        return frechet_distance(moments, self.reference)

    def reset(self) -> None:
        """Forget the generated images; the reference statistics stay."""
        self.moments = Moments(self.extractor.dim, self.extractor.device)

    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""
        return {
            "metric": self.name,
            "n": self.n,
            "quantisation": "uint8",
            "extractor": self.extractor.describe(),
            "reference": self.reference_facts,
            "statistics": self.statistics,
        }


def abbreviated(n: int) -> str:
    """Whole thousands as "k": 500, 1k, 1797, 50k."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
