"""Captioned pictures: real ones composed two by two, described by a small grammar."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk, ImageSet
from diffusion.data.digits import Digits
from diffusion.data.mnist import FashionMNIST
from diffusion.support.ranges import Few, Images, Seed, Some
from diffusion.support.seeds import mixed, splitmix64

PLACES = {"left": (1, 0), "right": (1, 2), "above": (0, 1), "below": (2, 1)}
"""The row and the column at which a place begins, in quarters of the side; each is half as high and half as wide as the picture."""


class Relation(NamedTuple):
    """How two objects lie: the places of the first and of the second, and the phrases that say so, each as often as it stands there.

    Its scenes whose second kind is `apart` after the first, modulo the number of kinds, are kept out of training."""

    places: tuple[str, str]
    apart: int
    phrases: tuple[str, ...]


# Four captions in five name the left or the upper object first, as people do. Were both orders as frequent, neither the order nor the word
# of the relation would say anything by itself, and a network that reads neither yet gains nothing by learning one of them.
BESIDE = Relation(
    ("left", "right"),
    3,
    2 * ("{0} left of {1}", "{0} to the left of {1}", "{0} on the left of {1}", "{0} on the left and {1} on the right")
    + ("{1} right of {0}", "{1} to the right of {0}"),
)
STACKED = Relation(
    ("above", "below"),
    7,
    2 * ("{0} above {1}", "{0} over {1}", "{0} on top of {1}", "{0} at the top and {1} at the bottom") + ("{1} below {0}", "{1} under {0}"),
)
RELATIONS = (BESIDE, STACKED)


class Scene(NamedTuple):
    """What pictures show: the number of the relation, and the kinds of the first and of the second object; numbers, or arrays of them."""

    relation: Any
    first: Any
    second: Any


def at_place(pictures: Any, place: str) -> Any:
    """The part of pictures [..., h, w, c] that is a place: [..., h/2, w/2, c], a view of them."""
    height, width = pictures.shape[-3:-1]
    row, column = PLACES[place][0] * height // 4, PLACES[place][1] * width // 4
    return pictures[..., row : row + height // 2, column : column + width // 2, :]


@dataclass(frozen=True)
class Captioned(PictureDataset):
    """n pictures on black, each of two real ones of half its side, one left of the other or one above the other, with a caption.

    The class of a picture is its scene (see `scene`), of which there are 2 k^2 for k kinds of objects. Captions take one of a relation's
    phrases and one of a kind's names, with its article, drawn evenly. Splits: `train` and `test` have nine tenths of the scenes, made
    of training and of test pictures; `heldout` has the others, made of test pictures. Each kind is once the first and once the second
    object of a held-out scene of each relation, and in training all kinds are both, in both relations, in other company.

    A picture is a function of (seed, split, its number)."""

    n: Images = 20000
    seed: Seed = 0

    splits: ClassVar[tuple[str, ...]] = ("train", "test", "heldout")
    kinds: ClassVar[tuple[tuple[str, ...], ...]]
    """The names of each kind of object, with their articles."""

    @property
    def captioned(self) -> bool:
        """They are."""
        return True

    @abstractmethod
    def single(self) -> PictureDataset:
        """The data set of this split's single pictures, whose classes are the kinds."""

    def resized(self, pictures: np.ndarray) -> np.ndarray:
        """Single pictures [k, h, w, c] at the size of a place."""
        return pictures

    def key(self) -> Any:
        return [self.n, self.seed, self.image_size, PLACES, RELATIONS, self.kinds, self.single().split, self.single().key()]

    def scene(self, number: Any) -> Scene:
        """The scene of class `number` = (relation k + first) k + second, for k kinds; of arrays of numbers too."""
        rest, second = divmod(number, len(self.kinds))
        relation, first = divmod(rest, len(self.kinds))
        return Scene(relation, first, second)

    def layouts(self) -> np.ndarray:
        """What each scene has in each of PLACES: the number of a kind, or k where there is nothing; int64 [2 k^2, places]."""
        relations, *objects = self.scene(np.arange(len(RELATIONS) * len(self.kinds) ** 2))
        found = np.full((len(relations), len(PLACES)), len(self.kinds))
        for number, relation in enumerate(RELATIONS):
            for place, kinds in zip(relation.places, objects, strict=True):
                found[relations == number, list(PLACES).index(place)] = kinds[relations == number]
        return found

    def parts(self, pictures: Tensor) -> Tensor:
        """What pictures [n, h, w, c] have in each of PLACES: [n, places, h/2, w/2, c]."""
        return torch.stack([at_place(pictures, place) for place in PLACES], 1)

    def of_split(self, split: str) -> ImageSet:
        """The pictures of a split of the same settings."""
        return replace(self, split=split).load()

    def allowed(self) -> np.ndarray:
        """The numbers of the scenes that this split has."""
        numbers = np.arange(len(RELATIONS) * len(self.kinds) ** 2)
        relation, first, second = self.scene(numbers)
        apart = np.array([relation.apart for relation in RELATIONS])[relation]
        return numbers[((second - first) % len(self.kinds) == apart) == (self.split == "heldout")]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        source, chunks = self.single().read()
        pictures, kinds = (np.concatenate(parts) for parts in zip(*((chunk[0], chunk[1]) for chunk in chunks), strict=True))
        words = splitmix64(mixed(self.seed, self.splits.index(self.split)), 6 * self.n).numpy().reshape(6, self.n)
        numbers = one_of(self.allowed(), words[0])
        scene, canvas = self.scene(numbers), np.zeros((self.n, *self.shape), np.uint8)
        rows = [np.flatnonzero(kinds == kind) for kind in range(len(self.kinds))]
        pictures = self.resized(pictures)
        for i, (relation, *objects) in enumerate(zip(*scene, strict=True)):
            for place, kind, word in zip(RELATIONS[relation].places, objects, words[1:3, i], strict=True):
                at_place(canvas[i], place)[:] = pictures[one_of(rows[kind], word)]
        return f"{source}, composed", iter([(canvas, numbers, self.captions(scene, words[3:]))])

    def captions(self, scene: Scene, words: np.ndarray) -> list[str]:
        """A caption for each of the scenes [n]; the phrase and the two names are chosen by random words [3, n]."""
        return [
            one_of(RELATIONS[relation].phrases, word).format(one_of(self.kinds[first], a), one_of(self.kinds[second], b))
            for relation, first, second, word, a, b in zip(*scene, *words, strict=True)
        ]


def one_of(choices: Sequence | np.ndarray, word: Any) -> Any:
    """One of the choices, by a random 64-bit word; of an array of choices, by an array of words too."""
    return choices[word % len(choices)]


@dataclass(frozen=True)
class CaptionedDigits(Captioned):
    """scikit-learn's digits of 8x8 composed to 16x16: "a seven left of a 3". Of them, `fit` is for training and `test` for the rest."""

    image_size: Few = 16
    channels: Few = 1
    num_classes: Some = 200

    name: ClassVar[str] = "captioned_digits"
    kinds: ClassVar = (
        ("a zero", "a 0"),
        ("a one", "a 1"),
        ("a two", "a 2"),
        ("a three", "a 3"),
        ("a four", "a 4"),
        ("a five", "a 5"),
        ("a six", "a 6"),
        ("a seven", "a 7"),
        ("an eight", "an 8"),
        ("a nine", "a 9"),
    )

    def single(self) -> PictureDataset:
        return Digits(split="fit" if self.split == "train" else "test")


@dataclass(frozen=True)
class CaptionedFashion(Captioned):
    """Fashion-MNIST's articles, resampled by area from 28x28 to 16x16 and composed to 32x32: "a sneaker left of a bag"."""

    image_size: Few = 32
    channels: Few = 1
    num_classes: Some = 200
    n: Images = 60000

    name: ClassVar[str] = "captioned_fashion"
    kinds: ClassVar = (
        ("a t-shirt",),
        ("trousers", "a pair of trousers"),
        ("a pullover",),
        ("a dress",),
        ("a coat",),
        ("a sandal",),
        ("a shirt",),
        ("a sneaker",),
        ("a bag",),
        ("an ankle boot",),
    )

    def single(self) -> PictureDataset:
        return FashionMNIST(root=self.root, split="train" if self.split == "train" else "test")

    def resized(self, pictures: np.ndarray) -> np.ndarray:
        size, side = pictures.shape[1], self.shape[0] // 2
        shares = coverage(size, side)  # quarters, whose sums are exact, so that the pictures are the same on every machine
        sums = np.einsum("yh,khwc,xw->kyxc", shares, pictures, shares, optimize=True)
        return np.rint(sums * (side / size) ** 2).astype(np.uint8)


def coverage(size: int, side: int) -> np.ndarray:
    """The share of each of `size` pixels that lies in each of `side` equal parts of the same line: [side, size]."""
    edges = np.arange(side + 1)[:, None] * size / side
    return np.diff(np.clip(edges - np.arange(size), 0, 1), axis=0)
