"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffusion.data.cache import Chunk
from diffusion.data.official import Download, Form, Official
from diffusion.support.ranges import Few, Some


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


def _python(name: str, folder: str, archive: str, md5: Mapping[str, str]) -> Form:
    archives = [f"{archive}.tar{packing}" for packing in (".gz", ".xz", "")]
    folders = [folder, f"{name}/{folder}", name, ""]
    places = (*folders, *(f"{base}{file}" for file in archives for base in (f"{name}/", "")))
    return Form("official python version", md5, places, _parse_python)


def _one_archive(filename: str, md5: str) -> dict[str, tuple[Download, ...]]:
    """The one archive that holds both splits."""
    download = Download(filename, (f"https://www.cs.toronto.edu/~kriz/{filename}",), md5)
    return {"train": (download,), "test": (download,)}


@dataclass(frozen=True)
class CIFAR10(Official):
    """50,000 training and 10,000 test images, 32x32 colour, 10 classes; the binary or the python version.

    Both are releases of the same records, so they share one cache; its info.json says which one it was made from.
    """

    image_size: Few = 32
    channels: Few = 3
    num_classes: Some = 10
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
            _python(
                "cifar10",
                "cifar-10-batches-py",
                "cifar-10-python",
                {
                    "data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "634d18415352ddfa80567beed471001a",
                    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                },
            ),
        ),
        "test": (
            _binary({"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}),
            _python("cifar10", "cifar-10-batches-py", "cifar-10-python", {"test_batch": "40351d587109b95175f43aff81a1287e"}),
        ),
    }
    downloads: ClassVar = _one_archive("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")


@dataclass(frozen=True)
class CIFAR100(Official):
    """50,000 training and 10,000 test images, 32x32 colour, 100 fine classes; the python version."""

    image_size: Few = 32
    channels: Few = 3
    num_classes: Some = 100
    flip: bool = True

    name: ClassVar[str] = "cifar100"
    forms: ClassVar = {
        "train": (_python("cifar100", "cifar-100-python", "cifar-100-python", {"train": "16019d7e3df5f24257cddd939b257f8d"}),),
        "test": (_python("cifar100", "cifar-100-python", "cifar-100-python", {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}),),
    }
    downloads: ClassVar = _one_archive("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
