"""The contract of data sets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from diffusion.data.cache import Chunk, ImageSet, open_cached
from diffusion.support.errors import UserError
from diffusion.support.ranges import Checked, Few, Share, Some
from diffusion.support.sizes import height_and_width


@dataclass(frozen=True)
class Dataset(Checked, ABC):
    """A set of pictures or vectors, declared: what it is, where its files are and where its cache goes.

    root is the folder that holds the published files (or receives the download), cache the folder of the memory-mapped
    arrays. `shape` is that of one item as the data hold it and `dtype` its type: (height, width, channels) and uint8 for
    pictures of 8 bits, (d,) and float32 for vectors; float32 items of any other shape are allowed too. The rest of the configuration reads
    what is declared, so it is checked against the data. flip says whether training mirrors pictures at random; see `diffusion.data.flip`.
    holdout is the share of the items that training does not see, whose loss it measures; see `diffusion.data.held_out`.

    Raises UserError for a split that the set does not have and for flip with vectors, and from `load` for a declaration that the data
    contradict.
    """

    root: str | Path = "data"
    cache: str | Path = ".cache"
    split: str = "train"
    num_classes: Some = 10
    flip: bool = False
    holdout: Share = 0.0

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    dtype: ClassVar[str] = "uint8"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in self.splits:
            raise UserError(f"{self.name} has no split {self.split!r}: say dataset.split={'|'.join(self.splits)}.")
        if self.flip and len(self.shape) != 3:
            raise UserError(f"{self.name} holds no pictures that could be mirrored left to right: say dataset.flip=false.")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one item: (height, width, channels), or (d,), or any other."""

    @property
    def captioned(self) -> bool:
        """Whether its chunks bring captions."""
        return False

    def facts(self) -> dict[str, Any]:
        """The true values of the declared facts: num_classes, and for pictures image_size and channels.

        A set that cannot be otherwise declares these as its defaults, so the defaults are the facts.
        """
        declared = {field.name: field.default for field in fields(self)}
        return {fact: declared[fact] for fact in ("image_size", "channels", "num_classes") if fact in declared}

    @abstractmethod
    def key(self) -> Any:
        """Everything besides name and split that determines the items and labels, as plain data; the cache's name depends on it."""

    @abstractmethod
    def read(self) -> tuple[str, Iterator[Chunk]]:
        """Where the data come from, in words, and the items and labels themselves, in a fixed order."""

    def load(self) -> ImageSet:
        """The items and labels, from the cache, which is made the first time. UserError says what is wrong.

        With num_classes = 0 declared, any set is served without its labels; None declares nothing."""
        facts = self.facts()
        for fact, value in facts.items():
            declared = getattr(self, fact)
            if declared not in (None, value) and (fact, declared) != ("num_classes", 0):
                raise UserError(f"{self.name} has {fact} {value}, which dataset.{fact}={declared} contradicts: say dataset.{fact}={value}.")
        images = open_cached(replace(self, **facts))
        return images if self.num_classes != 0 else replace(images, labels=None, num_classes=0)


@dataclass(frozen=True)
class PictureDataset(Dataset):
    """A set of pictures: image_size is the side of squares or [height, width], in pixels. Raises UserError for what is no size."""

    image_size: Few | list[Few] = 32
    channels: Few = 3

    def __post_init__(self) -> None:
        try:
            height, width = height_and_width(self.image_size)
        except ValueError as error:
            raise UserError(f"{self.name}: dataset.{error}") from error
        # One way to write a square and one to write a rectangle, since the size is in the cache's name and in comparisons.
        object.__setattr__(self, "image_size", height if height == width else [height, width])
        super().__post_init__()

    @property
    def shape(self) -> tuple[int, ...]:
        return (*height_and_width(self.image_size), self.channels)
