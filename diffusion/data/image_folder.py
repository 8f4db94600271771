"""Any folder of images."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.support.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_MODES = {1: "L", 3: "RGB"}
_CHUNK = 256  # images in memory at once while the cache is made


@dataclass(frozen=True)
class ImageFolder(PictureDataset):
    """The images (png, jpg, webp, bmp) under the folder `root`, sub-folders included, in the order of their names.

    Classes are root's sub-folders that hold images, sorted by name; without sub-folders the set has no labels and
    num_classes is 0. labelled=False ignores sub-folders as classes. Each image is turned upright by its EXIF tag, converted to RGB
    (channels=3) or grey (channels=1), resized to cover image_size and cropped at the centre; see `cover`. Editing a file, adding one or
    asking for another size makes another cache.

    Raises UserError: no such folder, no images, images beside class folders, an image that cannot be read.
    """

    image_size: int | list[int] = 64
    num_classes: int = 0
    flip: bool = True
    labelled: bool = True

    name: ClassVar[str] = "image_folder"
    splits: ClassVar[tuple[str, ...]] = ("train",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in _MODES:
            raise UserError(f"image_folder makes images of 3 channels or 1: dataset.channels={self.channels} is neither.")

    @cached_property
    def _folder(self) -> Path:
        return Path(self.root).expanduser().resolve()

    @cached_property
    def _files(self) -> list[Path]:
        """Relative to the folder, hidden ones left out."""
        if not self._folder.is_dir():
            raise UserError(f"There is no folder {self._folder}: point dataset.root at your folder of images.")
        found = []
        for folder, subfolders, names in os.walk(self._folder, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            images = (Path(folder, name) for name in names if not name.startswith("."))
            found += [path.relative_to(self._folder) for path in images if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise UserError(f"{self._folder} holds no image ({', '.join(sorted(_SUFFIXES))}): check dataset.root.")
        return sorted(found)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels; empty where the set has none."""
        classes = sorted({path.parts[0] for path in self._files if len(path.parts) > 1}) if self.labelled else []
        loose = next((path for path in self._files if len(path.parts) == 1), None)
        if classes and loose:
            raise UserError(
                f"{self._folder} has images beside its class folders (such as {loose}): move them into one, or say dataset.labelled=false."
            )
        return classes

    def facts(self) -> dict[str, Any]:
        return {"num_classes": len(self.classes)}

    def key(self) -> Any:
        stats = [(path, (self._folder / path).stat()) for path in self._files]
        files = [(path.as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return [str(self._folder), self.image_size, self.channels, self.labelled, files]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return str(self._folder), self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        from tqdm import tqdm

        label = {name: index for index, name in enumerate(self.classes)}
        # Threads are enough: PIL decodes and resizes without holding the interpreter's lock.
        with ThreadPoolExecutor() as pool, tqdm(total=len(self._files), desc="image cache", disable=None) as bar:
            for first in range(0, len(self._files), _CHUNK):
                paths = self._files[first : first + _CHUNK]
                images = np.stack(list(pool.map(self._image, paths)))
                yield images, np.array([label[path.parts[0]] for path in paths]) if label else None
                bar.update(len(paths))

    def _image(self, path: Path) -> np.ndarray:
        try:
            with Image.open(self._folder / path) as image:
                if image.mode[0] in "IF":  # converting these to 8 bits clips them without a word
                    raise ValueError(f"its pixels are not 8-bit but {image.mode}")
                upright = ImageOps.exif_transpose(image).convert(_MODES[self.channels])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self._folder / path} cannot be read as an image ({error}): repair it or take it out of the folder."
            ) from error
        return np.asarray(cover(upright, *self.shape[:2])).reshape(self.shape)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize to the smallest size that covers height x width and crop the centre, as ADM does for squares (Dhariwal & Nichol 2021).

    Halved with a box filter while both sides are at least twice the target's, then one bicubic step; both filters widen with the
    scale, so nothing aliases.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
