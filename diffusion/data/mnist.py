"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): idx files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffusion.data.cache import Chunk
from diffusion.data.official import Download, Form, Official
from diffusion.support.ranges import Few, Some


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


def _downloads(mirrors: tuple[str, ...], prefix: str, images_md5: str, labels_md5: str) -> tuple[Download, ...]:
    files = {f"{prefix}-images-idx3-ubyte.gz": images_md5, f"{prefix}-labels-idx1-ubyte.gz": labels_md5}
    return tuple(Download(name, tuple(mirror + name for mirror in mirrors), md5) for name, md5 in files.items())


@dataclass(frozen=True)
class MNIST(Official):
    """Handwritten digits: 60,000 training and 10,000 test images, 28x28 grey, 10 classes."""

    image_size: Few = 28
    channels: Few = 1
    num_classes: Some = 10

    name: ClassVar[str] = "mnist"
    _folders: ClassVar[tuple[str, ...]] = ("mnist", "MNIST/raw", "MNIST", "raw", "")
    forms: ClassVar = {
        "train": _form(_folders, "train", "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
        "test": _form(_folders, "t10k", "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    }
    _mirrors: ClassVar[tuple[str, ...]] = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    downloads: ClassVar = {
        "train": _downloads(_mirrors, "train", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
        "test": _downloads(_mirrors, "t10k", "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    }


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """Articles of clothing, in the same numbers, sizes and files as MNIST."""

    name: ClassVar[str] = "fashion_mnist"
    _folders: ClassVar[tuple[str, ...]] = ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST", "raw", "")
    forms: ClassVar = {
        "train": _form(_folders, "train", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
        "test": _form(_folders, "t10k", "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    }
    _mirrors: ClassVar[tuple[str, ...]] = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    downloads: ClassVar = {
        "train": _downloads(_mirrors, "train", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
        "test": _downloads(_mirrors, "t10k", "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    }
