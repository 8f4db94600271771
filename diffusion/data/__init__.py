"""Data sets, their cache and the training stream."""

from diffusion.data.base import Dataset
from diffusion.data.cache import ImageSet
from diffusion.data.cifar import CIFAR10, CIFAR100
from diffusion.data.digits import Digits
from diffusion.data.image_folder import ImageFolder
from diffusion.data.mnist import MNIST, FashionMNIST
from diffusion.data.module import DataModule
from diffusion.data.stream import Batch, Stream, flip
from diffusion.data.synthetic import Synthetic

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Batch",
    "DataModule",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageSet",
    "Stream",
    "Synthetic",
    "flip",
]
