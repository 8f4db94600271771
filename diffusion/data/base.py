"""What every data set has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from diffusion.data.cache import Chunk, ImageSet, open_cached
from diffusion.support.errors import UserError


@dataclass(frozen=True)
class Dataset(ABC):
    """A set of images, declared: what it is, where its files are and where its cache goes.

    root is the folder that holds the published files (or receives the download), cache the folder of the memory-mapped
    arrays. image_size, channels and num_classes are read by the rest of the configuration, so they are declared here
    and checked against the data. flip says whether training mirrors images at random; see `diffusion.data.flip`.

    Raises UserError for a split the set does not have, and from `load` for a declaration the data contradict.
    """

    root: str | Path = "data"
    cache: str | Path = ".cache"
    split: str = "train"
    image_size: int = 32
    channels: int = 3
    num_classes: int = 10
    flip: bool = False

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def __post_init__(self) -> None:
        if self.split not in self.splits:
            raise UserError(f"{self.name} has no split {self.split!r}: say dataset.split={'|'.join(self.splits)}.")

    def facts(self) -> dict[str, int]:
        """What the data really are: image_size (height = width, in pixels), channels and num_classes.

        A set that cannot be otherwise declares these as its defaults, so the defaults are the facts.
        """
        declared = {field.name: field.default for field in fields(self)}
        return {fact: declared[fact] for fact in ("image_size", "channels", "num_classes")}

    @abstractmethod
    def key(self) -> Any:
        """All that determines the images and labels besides name and split, as plain data; it names the cache."""

    @abstractmethod
    def read(self) -> tuple[str, Iterator[Chunk]]:
        """Where the data come from, in words, and the images and labels themselves, in a fixed order."""

    def load(self) -> ImageSet:
        """The images and labels, from the cache, which is made the first time. UserError says what is wrong.

        Declared num_classes = 0, any set is served without its labels: that is how an unconditional model is trained."""
        facts = self.facts()
        for fact, value in facts.items():
            if getattr(self, fact) != value and (fact, getattr(self, fact)) != ("num_classes", 0):
                raise UserError(
                    f"{self.name} has {fact} {value}, which dataset.{fact}={getattr(self, fact)} contradicts: say dataset.{fact}={value}."
                )
        images = open_cached(replace(self, **facts))
        return images if self.num_classes else replace(images, labels=None, num_classes=0)
