"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): idx files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torchvision import datasets

from diffusion.data.cache import Chunk
from diffusion.data.official import Download, Form, Official


def read_idx(content: bytes) -> np.ndarray:
    """An idx file: two zero bytes, the type (8 = uint8), the number of axes, each as big-endian int32, the data."""
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _form(folders: tuple[str, ...], prefix: str, images_md5: str, labels_md5: str) -> tuple[Form, ...]:
    images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"

    def parse(members: Mapping[str, bytes]) -> Iterator[Chunk]:
        yield read_idx(members[images])[..., None], read_idx(members[labels])

    return (Form("idx files", {images: images_md5, labels: labels_md5}, folders, parse),)


def _downloads(torch_set: type[datasets.MNIST], prefix: str) -> tuple[Download, ...]:
    return tuple(
        Download(filename, tuple(mirror + filename for mirror in torch_set.mirrors), md5)
        for filename, md5 in torch_set.resources
        if filename.startswith(prefix)
    )


@dataclass(frozen=True)
class MNIST(Official):
    """Handwritten digits: 60,000 training and 10,000 test images, 28x28 grey, 10 classes."""

    image_size: int = 28
    channels: int = 1
    num_classes: int = 10

    name: ClassVar[str] = "mnist"
    _folders: ClassVar = ("mnist", "MNIST/raw", "MNIST", "raw", "")
    forms: ClassVar = {
        "train": _form(_folders, "train", "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
        "test": _form(_folders, "t10k", "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    }
    downloads: ClassVar = {"train": _downloads(datasets.MNIST, "train"), "test": _downloads(datasets.MNIST, "t10k")}


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """Articles of clothing, in the same numbers, sizes and files as MNIST."""

    name: ClassVar[str] = "fashion_mnist"
    _folders: ClassVar = ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST", "raw", "")
    forms: ClassVar = {
        "train": _form(_folders, "train", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
        "test": _form(_folders, "t10k", "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    }
    downloads: ClassVar = {
        "train": _downloads(datasets.FashionMNIST, "train"),
        "test": _downloads(datasets.FashionMNIST, "t10k"),
    }
