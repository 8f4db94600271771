"""ImageNet, downsampled (Chrabaszcz et al. 2017, 1707.08819): npz batches of small pictures."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Some

_ROWS = 4096  # pictures that are copied at once; a file has 128,000


@dataclass(frozen=True)
class DownsampledImageNet(PictureDataset):
    """The 1,281,167 training and 50,000 validation pictures at 64x64, or 32x32 (image_size=32), 1,000 classes.

    The files train_data_batch_1.npz to train_data_batch_10.npz, and val_data.npz, lie in root, or in its folder imagenet64 (imagenet32),
    as they are published: `data` uint8 [k, 3 s^2], the planes R, G, B, each row by row, and `labels` from 1 to 1,000, in the order of the
    authors' own list of classes, not that of WordNet's numbers. A label is one less here.

    Raises UserError: no such folder, missing files (they are named), a damaged file, arrays of another form."""

    image_size: Few = 64
    channels: Few = 3
    num_classes: Some = 1000
    flip: bool = True

    name: ClassVar[str] = "downsampled_imagenet"
    splits: ClassVar[tuple[str, ...]] = ("train", "val")

    @cached_property
    def files(self) -> list[Path]:
        """The split's files, in order. Raises UserError if one is missing."""
        names = ["val_data.npz"] if self.split == "val" else [f"train_data_batch_{i}.npz" for i in range(1, 11)]
        root = Path(self.root).expanduser().absolute()
        places = [root / f"imagenet{self.image_size}", root]
        place = max(places, key=lambda place: sum((place / name).is_file() for name in names))
        if missing := [name for name in names if not (place / name).is_file()]:
            raise UserError(
                f"{', '.join(missing)} of {self.name} is not in {place}: point dataset.root at the folder that holds the npz files of "
                f"{self.image_size}x{self.image_size} pictures."
            )
        return [place / name for name in names]

    def facts(self) -> dict[str, Any]:
        return {"channels": 3, "num_classes": 1000}

    def key(self) -> Any:
        stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in self.files for stat in [file.stat()]]
        return [self.image_size, stats]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return str(self.files[0].parent), self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        from tqdm import tqdm

        height, width, channels = self.shape
        for file in tqdm(self.files, desc="image cache", disable=None):
            data, labels = arrays(file)
            if data.dtype != np.uint8 or data.shape != (len(labels), channels * height * width):
                raise UserError(
                    f"{file} holds {data.dtype} {list(data.shape)}, and not uint8 [{len(labels)}, {channels * height * width}]: say "
                    "dataset.image_size as the pictures are, or bring the published file."
                )
            for rows in range(0, len(labels), _ROWS):
                planes = data[rows : rows + _ROWS].reshape(-1, channels, height, width)
                yield planes.transpose(0, 2, 3, 1), labels[rows : rows + _ROWS].astype(np.int64) - 1


def arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """`data` and `labels` [k] of an npz file. Raises UserError for one that is damaged, or lacks them, or would run code."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return content["data"], content["labels"].reshape(-1)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{file} cannot be read ({error}): bring an undamaged copy of the published file.") from error
