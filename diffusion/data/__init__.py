"""Data sets, their cache and the training stream. Lightning is imported with DataModule, when that is asked for."""

from typing import TYPE_CHECKING, Any

from diffusion.data.base import Dataset, PictureDataset
from diffusion.data.cache import ImageSet
from diffusion.data.captioned import CaptionedDigits, CaptionedFashion
from diffusion.data.celeba import CelebA
from diffusion.data.cifar import CIFAR10, CIFAR100
from diffusion.data.digits import Digits
from diffusion.data.image_folder import ImageFolder
from diffusion.data.imagenet import DownsampledImageNet
from diffusion.data.mnist import MNIST, FashionMNIST
from diffusion.data.serving import Plain, Posteriors, Serving, served
from diffusion.data.stored import StoredImages
from diffusion.data.stream import Batch, Stream, flip, held_out
from diffusion.data.synthetic import Synthetic
from diffusion.data.two_moons import TwoMoons
from diffusion.data.webdataset import WebDataset

if TYPE_CHECKING:
    from diffusion.data.module import DataModule

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Batch",
    "CaptionedDigits",
    "CaptionedFashion",
    "CelebA",
    "DataModule",
    "Dataset",
    "Digits",
    "DownsampledImageNet",
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "PictureDataset",
    "Plain",
    "Posteriors",
    "Serving",
    "StoredImages",
    "Stream",
    "Synthetic",
    "TwoMoons",
    "WebDataset",
    "flip",
    "held_out",
    "served",
]


def __getattr__(name: str) -> Any:
    if name == "DataModule":
        from diffusion.data.module import DataModule

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
