"""Points of a plane made by arithmetic: the smallest data set on which a diffusion model has something to learn."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from diffusion.data.base import Dataset
from diffusion.data.cache import Chunk
from diffusion.support.ranges import Images, NonNegative, Seed, Some
from diffusion.support.seeds import splitmix64


@dataclass(frozen=True)
class TwoMoons(Dataset):
    """n points of two interleaving half circles of radius 1 with Gaussian noise, float32 [n, 2], the same on every machine.

    Point i has label i mod 2. With an angle a uniform on [0, pi], the moon of label 0 is (cos a, sin a) and that of label 1 is
    (1 - cos a, 1/2 - sin a); each coordinate has independent noise of standard deviation `noise` added. Angles and noise come from
    SplitMix64, so that the splits and the seeds give points of their own.
    """

    num_classes: Some = 2
    n: Images = 10_000
    noise: NonNegative = 0.05
    seed: Seed = 0

    name: ClassVar[str] = "two_moons"
    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def key(self) -> Any:
        return [self.n, self.noise, self.seed]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        stream = 2 * self.seed + self.splits.index(self.split)
        angle, radius, turn = uniform(splitmix64(stream, 3 * self.n)).reshape(3, self.n).numpy()
        labels = np.arange(self.n) % 2
        x, y = np.cos(math.pi * angle), np.sin(math.pi * angle)
        moons = np.stack([np.where(labels, 1 - x, x), np.where(labels, 0.5 - y, y)], 1)
        # Box & Muller 1958: sqrt(-2 log u) (cos 2 pi v, sin 2 pi v) are two independent standard normals.
        normal = np.sqrt(-2 * np.log(radius))[:, None] * np.stack([np.cos(2 * math.pi * turn), np.sin(2 * math.pi * turn)], 1)
        return "arithmetic", iter([((moons + self.noise * normal).astype(np.float32), labels)])


def uniform(words: Tensor) -> Tensor:
    """float64 in (0, 1] from the lowest 53 bits of int64 words: the middles of 2^53 equal intervals."""
    return ((words & (2**53 - 1)).double() + 0.5) * 2.0**-53
