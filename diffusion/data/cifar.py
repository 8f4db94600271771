"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torchvision import datasets

from diffusion.data.cache import Chunk
from diffusion.data.official import Download, Form, Official


def _images(planes: np.ndarray) -> np.ndarray:
    """[k, 3072] as planes R, G, B, each row by row -> [k, 32, 32, 3]."""
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _parse_binary(members: Mapping[str, bytes]) -> Iterator[Chunk]:
    """Records of one label byte and 3,072 bytes of image."""
    for content in members.values():
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        yield _images(records[:, 1:]), records[:, 0]


def _parse_python(members: Mapping[str, bytes]) -> Iterator[Chunk]:
    """Pickled dictionaries; a pickle can run code, so these bytes are only ever the ones whose md5 is known."""
    for content in members.values():
        entry = pickle.loads(content, encoding="latin1")
        labels = entry.get("labels", entry.get("fine_labels"))
        yield _images(entry["data"]), np.array(labels)


def _binary(md5: Mapping[str, str]) -> Form:
    archives = [f"cifar-10-binary.tar{packing}" for packing in (".gz", ".xz", "")]
    folders = ["cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", ""]
    places = (*folders, *(f"{base}{archive}" for archive in archives for base in ("cifar10/", "")))
    return Form("official binary version", md5, places, _parse_binary)


def _python(torch_set: type[datasets.CIFAR10], name: str, files: list[list[str]]) -> Form:
    archives = [torch_set.filename, torch_set.filename.replace(".gz", ".xz"), torch_set.filename.removesuffix(".gz")]
    folders = [torch_set.base_folder, f"{name}/{torch_set.base_folder}", name, ""]
    places = (*folders, *(f"{base}{archive}" for archive in archives for base in (f"{name}/", "")))
    return Form("official python version", dict(files), places, _parse_python)


def _download(torch_set: type[datasets.CIFAR10]) -> tuple[Download, ...]:
    return (Download(torch_set.filename, (torch_set.url,), torch_set.tgz_md5),)


@dataclass(frozen=True)
class CIFAR10(Official):
    """50,000 training and 10,000 test images, 32x32 colour, 10 classes; the binary or the python version.

    Both are releases of the same records, so they share one cache; its info.json says which one it was made from.
    """

    image_size: int = 32
    channels: int = 3
    num_classes: int = 10
    flip: bool = True

    name: ClassVar[str] = "cifar10"
    forms: ClassVar = {
        "train": (
            _binary(
                {
                    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                }
            ),
            _python(datasets.CIFAR10, "cifar10", datasets.CIFAR10.train_list),
        ),
        "test": (
            _binary({"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}),
            _python(datasets.CIFAR10, "cifar10", datasets.CIFAR10.test_list),
        ),
    }
    downloads: ClassVar = {split: _download(datasets.CIFAR10) for split in ("train", "test")}


@dataclass(frozen=True)
class CIFAR100(Official):
    """50,000 training and 10,000 test images, 32x32 colour, 100 fine classes; the python version."""

    image_size: int = 32
    channels: int = 3
    num_classes: int = 100
    flip: bool = True

    name: ClassVar[str] = "cifar100"
    forms: ClassVar = {
        "train": (_python(datasets.CIFAR100, "cifar100", datasets.CIFAR100.train_list),),
        "test": (_python(datasets.CIFAR100, "cifar100", datasets.CIFAR100.test_list),),
    }
    downloads: ClassVar = {split: _download(datasets.CIFAR100) for split in ("train", "test")}
