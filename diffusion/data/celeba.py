"""CelebA (Liu et al. 2015): 202,599 faces, aligned, with 40 attributes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.data.image_folder import in_chunks
from diffusion.pictures import read_image
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Natural, Some

PARTITION, ATTRIBUTES = "list_eval_partition.txt", "list_attr_celeba.txt"


@dataclass(frozen=True)
class CelebA(PictureDataset):
    """The faces of `img_align_celeba/`, jpg files of 178x218, with the splits of list_eval_partition.txt, both in root or in root/celeba.

    Of each the square of side `crop` about (row, column) = `centre` is resized by Pillow's bilinear filter. The defaults, rows 57 to 184
    and columns 25 to 152, are those of DDIM's code (Song et al. 2020, github.com/ermongroup/ddim, datasets/__init__.py);
    crop=140 centre=[109,89] is the square in the middle that NCSN takes (Song & Ermon 2019). With `attribute`, a name in
    list_attr_celeba.txt such as Smiling, class 1 has it and class 0 has not; without, there are no classes.

    Raises UserError: no such folder or files, a square that is not in the picture, an unknown attribute, lines of a list that are not what
    they should be, pictures that cannot be read or are of another size."""

    image_size: Few = 64
    num_classes: Some | None = None  # type: ignore[assignment]  # 2 with an attribute, else 0
    flip: bool = True
    crop: Few = 128
    centre: tuple[Natural, Natural] | list[Natural] = (121, 89)
    attribute: str | None = None

    name: ClassVar[str] = "celeba"
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")
    size: ClassVar[tuple[int, int]] = (218, 178)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "centre", tuple(self.centre))
        if len(self.centre) != 2 or min(self.corner) < 0 or any(a + self.crop > b for a, b in zip(self.corner, self.size, strict=True)):
            raise UserError(
                f"The square of side dataset.crop={self.crop} about dataset.centre={list(self.centre)} is not within 218 rows and 178 "
                "columns: make it smaller, or move it."
            )

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and column of the square."""
        return self.centre[0] - self.crop // 2, self.centre[1] - self.crop // 2

    @cached_property
    def folder(self) -> Path:
        """The folder that holds both. Raises UserError if there is none."""
        root = Path(self.root).expanduser().absolute()
        for place in (root, root / self.name):
            if (place / "img_align_celeba").is_dir() and (place / PARTITION).is_file():
                return place
        raise UserError(
            f"{PARTITION} and the folder img_align_celeba are not in {root}, nor in {root / self.name}: unpack CelebA's aligned pictures "
            "there, or point dataset.root at the folder that holds both."
        )

    def facts(self) -> dict[str, Any]:
        return {"channels": 3, "num_classes": 2 if self.attribute else 0}

    def key(self) -> Any:
        """The lists' sizes and times of change; the pictures are taken to be the published ones."""
        lists = [self.folder / name for name in (PARTITION, *([ATTRIBUTES] if self.attribute else []))]
        stats = [(file.name, stat.st_size, stat.st_mtime_ns) for file in lists if file.is_file() for stat in [file.stat()]]
        return [str(self.folder), self.image_size, self.crop, self.centre, self.attribute, stats]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return str(self.folder), self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        number = str(self.splits.index(self.split))
        names = [name for name, split in self._lines(PARTITION, 2) if split == number]
        labels = self._labels(names) if self.attribute else None
        folder = self.folder / "img_align_celeba"
        for chunk, pixels in in_chunks(folder, [Path(name) for name in names], self._face):
            yield pixels, None if labels is None else labels[chunk]

    def _labels(self, names: list[str]) -> np.ndarray:
        lines = self._lines(ATTRIBUTES, 41, skipped=2)
        columns = (self.folder / ATTRIBUTES).read_text().splitlines()[1].split()
        if self.attribute not in columns:
            raise UserError(f"CelebA has no attribute {self.attribute}: say dataset.attribute={'|'.join(columns)}, or null.")
        column = columns.index(self.attribute) + 1
        has = {row[0]: row[column] == "1" for row in lines}
        if absent := [name for name in names if name not in has]:
            raise UserError(f"{ATTRIBUTES} in {self.folder} has no line for {absent[0]}: bring the published file.")
        return np.array([has[name] for name in names], dtype=np.int64)

    def _lines(self, name: str, words: int, skipped: int = 0) -> list[list[str]]:
        """The words of each line of a list. Raises UserError for a file that is not there, and for a line of another number of words."""
        try:
            lines = (self.folder / name).read_text().splitlines()[skipped:]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name} in {self.folder} cannot be read ({error}): bring the published file.") from error
        rows = [line.split() for line in lines if line.strip()]
        if wrong := [i for i, row in enumerate(rows, skipped + 1) if len(row) != words]:
            raise UserError(f"Line {wrong[0]} of {name} in {self.folder} has not {words} words: bring the published file.")
        return rows

    def _face(self, name: Path) -> np.ndarray | str:
        """Its pixels, or its name and why it has none."""
        try:
            image = read_image(self.folder / "img_align_celeba" / name, 3)
        except ValueError as error:
            return f"{name} ({error})"
        if image.size != self.size[::-1]:
            return f"{name} (it has {image.width}x{image.height} pixels and not 178x218)"
        top, left = self.corner
        height, width, _ = self.shape
        square = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(square.resize((width, height), Image.Resampling.BILINEAR))
