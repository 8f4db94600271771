"""Any folder of images."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk, ImageSet
from diffusion.data.captions import caption_files, read_captions
from diffusion.pictures import FORMATS, MODES, read_image
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Some

_CHUNK = 256  # images in memory at once while the cache is made
_NAMED = 10  # unreadable images, and kinds of files, that are named; the others are counted
_EXAMPLES = 2  # files of a kind that are named
_READING = 2  # raised when the same files give other pixels; 2: what is transparent shows white
log = logging.getLogger(__name__)
say = cache(log.info)  # once in a process, which loads its data more than once


@dataclass(frozen=True)
class ImageFolder(PictureDataset):
    """The images (png, jpg, webp, bmp) under the folder `root`, sub-folders included, in the order of their names.

    Classes are root's sub-folders that hold images, sorted by name; without sub-folders the set has no labels and
    num_classes is 0. labelled=False ignores sub-folders as classes, and so does num_classes=0 where images lie beside them; None stands
    for as many as there are. Each image is read by `diffusion.pictures.read_image`, resized to cover image_size and cropped at the
    centre; see `cover`. Editing a file, adding one or asking for another size makes another cache. Links are followed, to each folder
    once. What is left out is counted and said.

    Images have captions where there is a metadata.jsonl or metadata.csv, which has them in the column `caption`, or a .txt file beside an
    image; see `diffusion.data.captions`.

    Raises UserError: no such folder, no images, images beside class folders, images that cannot be read, all of them at once; captions
    that cannot be read, or are not of these images.
    """

    image_size: Few | list[Few] = 64
    num_classes: Some | None = None  # type: ignore[assignment]  # the other sets know theirs
    flip: bool = True
    labelled: bool = True
    caption: str = "text"

    name: ClassVar[str] = "image_folder"
    splits: ClassVar[tuple[str, ...]] = ("train",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in MODES:
            raise UserError(f"image_folder makes images of 3 channels or 1: dataset.channels={self.channels} is neither.")

    @cached_property
    def _folder(self) -> Path:
        return Path(self.root).expanduser().resolve()

    @cached_property
    def _listed(self) -> tuple[list[Path], dict[str, list[Path]], list[Path]]:
        """The images, relative to the folder, what is left out of it (see `listed`), and the files that hold captions."""
        if not self._folder.is_dir():
            raise UserError(f"There is no folder {self._folder}: point dataset.root at your folder of images.")
        images, left_out = listed(self._folder)
        if not images:
            raise UserError(f"{self._folder} holds no image ({', '.join(sorted(FORMATS))}): check dataset.root{_said(left_out)}.")
        captions = caption_files(images, [path for paths in left_out.values() for path in paths])
        kept = {kind: [path for path in paths if path not in set(captions)] for kind, paths in left_out.items()}
        return images, {kind: paths for kind, paths in kept.items() if paths}, sorted(captions)

    @property
    def captioned(self) -> bool:
        """Whether there are files with captions."""
        return bool(self._listed[2])

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels; empty where the set has none."""
        images = self._listed[0]
        classes = sorted({path.parts[0] for path in images if len(path.parts) > 1}) if self.labelled else []
        loose = next((path for path in images if len(path.parts) == 1), None)
        if classes and loose and self.num_classes != 0:
            raise UserError(
                f"{self._folder} has images beside its class folders (such as {loose}): move them into one, or say dataset.labelled=false."
            )
        return [] if loose else classes

    def facts(self) -> dict[str, Any]:
        return {"num_classes": len(self.classes)}

    def load(self) -> ImageSet:
        images = super().load()
        classes = f"{images.num_classes} classes, its sub-folders" if images.num_classes else "without classes"
        if self.classes and not images.num_classes:
            classes += ", since dataset.num_classes=0"
        if images.captions is not None:
            classes += f", with captions of {sum(map(bool, images.captions))}"
        say(f"{self._folder} has {len(images)} images, {classes}{_said(self._listed[1])}.")
        return images

    def key(self) -> Any:
        images, _, captions = self._listed
        of_captions = [self.caption, self._stats(captions)] if captions else []  # nothing, so that a cache from before them stays
        return [_READING, str(self._folder), self.image_size, self.channels, self.labelled, self._stats(images), *of_captions]

    def _stats(self, paths: list[Path]) -> list[tuple[str, int, int]]:
        stats = [(path, (self._folder / path).stat()) for path in paths]
        return [(path.as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return str(self._folder), self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        images, label = self._listed[0], {name: index for index, name in enumerate(self.classes)}
        captions = read_captions(self._folder, self._listed[2], images, self.caption)  # before the images, which take longer
        for chunk, pixels in in_chunks(self._folder, images, self._image):
            labels = np.array([label[path.parts[0]] for path in images[chunk]]) if label else None
            yield pixels, labels, captions[chunk] if self.captioned else ()

    def _image(self, path: Path) -> np.ndarray | str:
        """Its pixels, or its name and why it has none."""
        try:
            image = read_image(self._folder / path, self.channels)
        except ValueError as error:
            return f"{path} ({error})"
        return np.asarray(cover(image, *self.shape[:2])).reshape(self.shape)


def in_chunks(folder: Path, images: list[Path], pixels: Callable[[Path], np.ndarray | str]) -> Iterator[tuple[slice, np.ndarray]]:
    """(which of the images, their pixels stacked), some at a time and in order, with a bar; `pixels` gives those of one, or its name and
    why it has none. Raises UserError for images that cannot be read, all of them at once."""
    from tqdm import tqdm

    broken: list[str] = []
    # Threads are enough: PIL decodes and resizes without holding the interpreter's lock.
    with ThreadPoolExecutor() as pool, tqdm(total=len(images), desc="image cache", disable=None) as bar:
        for first in range(0, len(images), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            found = list(pool.map(pixels, images[chunk]))
            broken += [reason for reason in found if isinstance(reason, str)]
            if not broken:  # else what is left is only looked at, to name all at once
                yield chunk, np.stack([image for image in found if not isinstance(image, str)])
            bar.update(len(found))
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise UserError(
            f"{len(broken)} of the {len(images)} images in {folder} cannot be read: {'; '.join(broken[:_NAMED])}{more}; "
            "repair them or take them out of the folder."
        )


def listed(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The images under a folder, relative to it and in order, and what is left out, by its kind (see `_said`) in the order found.

    A folder is walked once however many links lead to it, those of the tree itself before what is linked, so that a link back makes no
    copies. No file is opened."""
    images, left_out = [], defaultdict[str, list[Path]](list)
    seen, waiting, linked = set(), [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        if (real := folder.resolve()) in seen:
            left_out["link(s) to a folder that is read already"].append(folder.relative_to(root))
            continue
        seen.add(real)
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            left_out["folder(s) that cannot be opened"].append(folder.relative_to(root))
            continue
        for entry in entries:
            path = entry.relative_to(root)
            if entry.name.startswith("."):
                left_out["hidden file(s) or folder(s)"].append(path)
            elif os.path.isdir(entry):
                (linked if os.path.islink(entry) else waiting).append(entry)
            elif not os.path.isfile(entry):
                left_out["pipe(s) or device(s)" if os.path.exists(entry) else "broken link(s)"].append(path)
            elif entry.suffix.lower() not in FORMATS:
                left_out[f"{entry.suffix} file(s)" if entry.suffix else "file(s) without a suffix"].append(path)
            else:
                images.append(path)
    return sorted(images), left_out


def _said(left_out: Mapping[str, list[Path]]) -> str:
    """What is left out in words, for the end of a sentence, the most first: "; left out: 3 .txt files (a.txt, b.txt, ...)"; empty where
    nothing is. A kind has "(s)" where one thing and several are spelt differently."""
    kinds = sorted(left_out.items(), key=lambda kind: -len(kind[1]))
    words = [
        f"{len(paths)} {kind.replace('(s)', 's' if len(paths) > 1 else '')} "
        f"({', '.join(map(str, paths[:_EXAMPLES]))}{', ...' if len(paths) > _EXAMPLES else ''})"
        for kind, paths in kinds[:_NAMED]
    ]
    return f"; left out: {', '.join(words)}{', ...' if len(kinds) > _NAMED else ''}" if words else ""


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
