"""Images made by arithmetic, for tests and smoke runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.support.ranges import Few, Images, Seed
from diffusion.support.seeds import splitmix64


@dataclass(frozen=True)
class Synthetic(PictureDataset):
    """n images of any height, width, channels and classes, the same on every machine.

    Image i has label i mod num_classes and shows a bright vertical bar whose place tells the class, on noise of 0..63
    from SplitMix64. num_classes = 0 has no labels.
    """

    image_size: Few | list[Few] = 16
    n: Images = 256
    seed: Seed = 0

    name: ClassVar[str] = "synthetic"

    def facts(self) -> dict[str, Any]:
        return {}

    def key(self) -> Any:
        return [self.image_size, self.channels, self.num_classes, self.n, self.seed]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        shape, width = (self.n, *self.shape), self.shape[1]
        stream = 2 * self.seed + self.splits.index(self.split)
        noise = (splitmix64(stream, int(np.prod(shape))).numpy() & 63).astype(np.uint8).reshape(shape)
        classes = max(self.num_classes, 1)
        labels = np.arange(self.n) % classes
        column = np.arange(width) * classes // width
        bar = (column == labels[:, None])[:, None, :, None]
        return "arithmetic", iter([(noise + np.uint8(192) * bar, labels if self.num_classes else None)])
