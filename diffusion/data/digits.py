"""scikit-learn's handwritten digits: real images inside the wheel, so the embedded default needs no download."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.support.ranges import Few, Some


@dataclass(frozen=True)
class Digits(PictureDataset):
    """1,797 images of handwritten digits, 8x8 grey, 10 classes (Alpaydin & Kaynak 1998, the UCI test part).

    Pixels 0..16 become round(255 x / 16). Splits: `train` is everything, since 1,797 is little; for work that needs
    images kept apart, `test` is every sixth image from the first (300) and `fit` the 1,497 others.
    """

    image_size: Few = 8
    channels: Few = 1
    num_classes: Some = 10

    name: ClassVar[str] = "digits"
    splits: ClassVar[tuple[str, ...]] = ("train", "fit", "test")

    def key(self) -> Any:
        return "every sixth image"

    def read(self) -> tuple[str, Iterator[Chunk]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
        held_out = np.arange(len(images)) % 6 == 0
        chosen = {"train": held_out | True, "fit": ~held_out, "test": held_out}[self.split]
        return "sklearn.datasets.load_digits", iter([(images[chosen], bunch.target[chosen])])
