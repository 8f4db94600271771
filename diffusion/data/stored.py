"""Images as they lie in a folder, a zip or an npz, to be measured: none is resized."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from diffusion.data.base import Dataset
from diffusion.data.cache import Chunk
from diffusion.data.image_folder import in_chunks, listed
from diffusion.npz import Header, header, headers, reading
from diffusion.pictures import CLASSES, FORMATS, MODES, read_image
from diffusion.support.errors import UserError
from diffusion.support.ranges import Some

ARRAYS = {"arr_0": "arr_1", "images": "labels"}  # an npz's images and their labels: guided-diffusion's names, and those of sample.py
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")  # Pillow's modes
_BYTES = 2**26  # of an npz in memory at once


class Source(NamedTuple):
    """The images [n, *shape] of a file or folder, their labels [n] or None, and their chunks, which are read when they are asked for."""

    shape: tuple[int, int, int]
    labels: np.ndarray | None
    chunks: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class StoredImages(Dataset):
    """The images that lie at `root`, as they are: a folder or a zip (png, jpg, webp, bmp; sub-folders included, in the order of their
    names), or an npz, whose `arr_0`, or `images`, is uint8 [n, h, w, c] or [n, h, w]; its `arr_1`, or `labels`, are classes if whole
    numbers [n]. A dataset.json in a folder or zip, as EDM's dataset tool writes it, says the classes. Images of which one is in colour are
    all in colour. A folder that sample.py wrote stands for its samples.npz.

    Raises UserError, from `load`: nothing there, no images, images of several sizes, images that cannot be read (all of them at once), an
    npz of something else, classes of other images."""

    num_classes: Some | None = None  # type: ignore[assignment]  # as many as there are

    name: ClassVar[str] = "stored_images"
    splits: ClassVar[tuple[str, ...]] = ("train",)

    @cached_property
    def path(self) -> Path:
        """The file, or the folder."""
        path = Path(self.root).expanduser().resolve()
        if not path.exists():
            raise UserError(f"There is no file or folder {self.root}.")
        if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
            raise UserError(f"{self.root} is a run, and images are asked for: say ckpt={self.root}, or a folder of its samples/.")
        ours = path / "samples.npz"
        return ours if ours.is_file() and (path / "recipe.json").is_file() else path

    @cached_property
    def source(self) -> Source:
        """What reads it."""
        if self.path.is_dir():
            return of_pictures(self.path, listed(self.path)[0], lambda name: self.path / name, self.classes)
        if self.path.suffix.lower() == ".npz":
            return of_npz(self.path)
        if self.path.suffix.lower() == ".zip":
            return of_zip(self.path, self.classes)
        raise UserError(f"{self.path} is neither a folder, nor a .zip, nor a .npz of images.")

    @cached_property
    def classes(self) -> Mapping[str, int]:
        """The classes that a folder or zip says of its images, by their names; none where it says none."""
        if self.path.is_dir():
            file = self.path / CLASSES
            return classes_by_name(file, file.read_bytes()) if file.is_file() else {}
        if self.path.suffix.lower() != ".zip":
            return {}
        with zip_of(self.path) as archive:
            there = next((info for info in archive.infolist() if Path(PurePosixPath(info.filename)) == Path(CLASSES)), None)
            return classes_by_name(self.path / CLASSES, unzipped(self.path, archive, there)) if there else {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def facts(self) -> dict[str, Any]:
        if self.path.suffix.lower() == ".npz":
            return {"num_classes": 0 if self.source.labels is None else int(self.source.labels.max()) + 1}
        return {"num_classes": 1 + max(self.classes.values(), default=-1)}

    def key(self) -> Any:
        beside = [Path(CLASSES)] * (self.path / CLASSES).is_file()
        files = [self.path / name for name in (*listed(self.path)[0], *beside)] if self.path.is_dir() else [self.path]
        stats = [(file, file.stat()) for file in files]
        return [str(self.path), [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return str(self.path), self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        first = 0
        for images in self.source.chunks():
            yield images, None if self.source.labels is None else self.source.labels[first : first + len(images)]
            first += len(images)


def of_pictures(place: Path, names: list[Path], opened: Callable[[Path], Path | BytesIO], classes: Mapping[str, int]) -> Source:
    """The pictures with these names in `place`, each of which `opened` gives to be read, and their classes."""
    if not names:
        raise UserError(f"{place} holds no image ({', '.join(sorted(FORMATS))}).")
    if classes and (without := [name for name in names if name.as_posix() not in classes]):
        raise UserError(f"{place / CLASSES} says the classes of {len(classes)} images, and none of {without[0]}.")
    labels = np.array([classes[name.as_posix()] for name in names]) if classes else None
    channels = 1 if all(is_grey(opened(name)) for name in names) else 3
    try:
        width, height = read_image(opened(names[0]), channels).size
    except ValueError as error:
        raise UserError(f"The image {names[0]} in {place} cannot be read ({error}).") from error

    def pixels(name: Path) -> np.ndarray | str:
        try:
            image = read_image(opened(name), channels)
        except ValueError as error:
            return f"{name} ({error})"
        if image.size != (width, height):
            raise UserError(
                f"The images in {place} are of several sizes: {names[0]} is {width}x{height} and {name} {image.width}x{image.height}; "
                "dataset=image_folder crops and resizes those of a folder to one dataset.image_size."
            )
        return np.asarray(image).reshape(height, width, channels)

    return Source((height, width, channels), labels, lambda: (images for _, images in in_chunks(place, names, pixels)))


def classes_by_name(file: Path, content: bytes) -> dict[str, int]:
    """The classes in a dataset.json, by the names of their images; none where its labels are null. Raises UserError for another file."""
    try:
        pairs = json.loads(content)["labels"] or ()
        classes = {str(name): label for name, label in pairs}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{file} cannot be read ({type(error).__name__}); it is to hold {{"labels": [[NAME, CLASS], ...]}}.') from error
    if wrong := [label for label in classes.values() if type(label) is not int or label < 0]:
        raise UserError(f"{file} has {str(wrong[0])[:40]} as a class; a class is a whole number from 0.")
    return classes


def is_grey(picture: Path | BytesIO) -> bool:
    """Whether a picture has no colours, by its first bytes; one that cannot be read has none."""
    try:
        with Image.open(picture, formats=sorted(set(FORMATS.values()))) as image:
            return image.mode in GREY
    except Exception:  # Pillow raises many kinds for a damaged file, which is named when it is read
        return True


def zip_of(path: Path) -> ZipFile:
    """The zip, open. Raises UserError for what is none."""
    try:
        return ZipFile(path)
    except BadZipFile as error:
        raise UserError(f"{path} cannot be read as a zip ({error}).") from error


def unzipped(path: Path, archive: ZipFile, info: ZipInfo) -> bytes:
    """A file in a zip. Raises UserError for one that cannot be read."""
    try:
        return archive.read(info)
    except (BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:  # RuntimeError: a password
        raise UserError(f"{info.filename} in {path} cannot be read ({error}).") from error


def of_zip(path: Path, classes: Mapping[str, int]) -> Source:
    """The pictures of a zip."""
    archive = zip_of(path)
    # By what is left of their names without `.` and empty parts; of two of one name a zip holds the last.
    found = {Path(PurePosixPath(info.filename)): info for info in archive.infolist() if not info.is_dir()}
    names = [
        name for name in found if name.suffix.lower() in FORMATS and not any(part.startswith((".", "__MACOSX")) for part in name.parts)
    ]

    return of_pictures(path, sorted(names), lambda name: BytesIO(unzipped(path, archive, found[name])), classes)


def of_npz(path: Path) -> Source:
    """The array of images of an npz, read a part at a time, since it may be larger than the memory."""
    arrays = headers(path)
    images = next((name for name in ARRAYS if name in arrays), None)
    if images is None:
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}, and no images: those are an array {' or '.join(ARRAYS)}.")
    shape, kind, fortran = arrays[images]
    if shape[:1] == (0,):
        raise UserError(f"{images} of {path} holds no image.")
    if kind != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in MODES) or fortran or not prod(shape):
        raise UserError(f"{images} of {path} is {kind} {list(shape)}, and images are uint8 [n, h, w, 3], [n, h, w, 1] or [n, h, w].")
    n, height, width, channels = (*shape, 1)[:4]
    size = height * width * channels
    few = max(1, _BYTES // size)

    def chunks() -> Iterator[np.ndarray]:
        with reading(path), ZipFile(path) as archive, archive.open(f"{images}.npy") as file:
            header(file)
            for first in range(0, n, few):
                count = min(few, n - first)
                content = file.read(count * size)
                if len(content) < count * size:
                    raise EOFError(f"{images} ends after {first} images")
                yield np.frombuffer(content, np.uint8).reshape(count, height, width, channels)

    return Source((height, width, channels), classes_of(path, ARRAYS[images], n, arrays), chunks)


def classes_of(path: Path, name: str, n: int, arrays: dict[str, Header]) -> np.ndarray | None:
    """The classes [n] in this array of an npz; None if there are none. Raises UserError for another number of them."""
    shape, kind, _ = arrays.get(name, ((), np.dtype(object), False))
    if len(shape) == 1 and shape != (n,) and kind.kind in "iu":
        raise UserError(f"{path} holds {n} images, and {shape[0]} classes in {name}.")
    if shape != (n,) or kind.kind not in "iu":
        return None
    with reading(path), np.load(path, allow_pickle=False) as archive:
        labels = archive[name].astype(np.int64)
    return labels if labels.min() >= 0 else None
