"""The cache: every data set, turned once into one flat file of uint8 or float32 that is mapped into memory."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion.support.errors import UserError
from diffusion.support.files import atomic, lock, temporaries

if TYPE_CHECKING:
    from diffusion.data.base import Dataset

FORMAT = 1  # raise it when the layout of a cache folder or the meaning of a data set's numbers changes
FILES = {"uint8": "images.u8", "float32": "images.f32"}  # the name of the flat file says its type
LABELS, CAPTIONS = "labels.npy", "captions.json"
HASHED = 2**30  # bytes: up to here a cache is compared with its hash when it is opened
log = logging.getLogger(__name__)

Chunk = tuple[np.ndarray, np.ndarray | None] | tuple[np.ndarray, np.ndarray | None, Sequence[str]]
"""Items [k, *shape] of the data set's type, their int64 labels [k], or None where the set has no classes, and, where it is captioned, their
k captions, "" for none."""


@dataclass(frozen=True)
class ImageSet:
    """A data set, ready to read.

    images: the items, [n, *shape], mapped from disk copy-on-write, so that nothing written to them ever reaches the file:
        uint8 [n, h, w, c] for pictures of 8 bits, float32 [n, d] for vectors, or float32 of any other shape.
    labels: int64 [n], or None where the set has no classes (num_classes = 0).
    captions: n of them, "" for none, or None where the set is not captioned.
    sha256: hex digest of the bytes of images, then of labels, then of the file of captions.
    """

    images: np.memmap
    labels: np.ndarray | None
    name: str
    split: str
    num_classes: int
    sha256: str
    captions: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.images)


def open_cached(dataset: "Dataset") -> ImageSet:
    """Open the data set's cache, making it first if it is not there.

    The folder's name ends in a hash of everything that determines the content, so nothing stale is read. Of several processes that ask
    together one makes it and the others wait; a maker that is killed leaves the cache absent, not partial. A cache that was damaged
    since is made again, with a warning: its files' sizes are compared, and up to 1 GiB (HASHED) their content too, once in a process;
    larger ones would take too long to read.
    """
    target = cache_folder(dataset)
    try:
        if not _whole(target):
            if target.exists():
                log.warning("The cache %s is damaged and is made again.", target)
            with lock(target.parent / f".{target.name}.lock"):
                if not _whole(target):
                    _build(dataset, target)
        return _open(target)
    except OSError as error:
        raise UserError(
            f"The cache of {dataset.name} in {target} cannot be used ({error}): free that disk, or point dataset.cache "
            "at a folder that can be written."
        ) from error


def cache_folder(dataset: "Dataset") -> Path:
    """<cache>/<name>-<split>-<hash of format, name, split and the data set's own key>."""
    described = json.dumps([FORMAT, dataset.name, dataset.split, dataset.key()], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:12]
    return Path(dataset.cache).expanduser().absolute() / f"{dataset.name}-{dataset.split}-{digest}"


def _build(dataset: "Dataset", target: Path) -> None:
    for leftover in temporaries(target):
        shutil.rmtree(leftover, ignore_errors=True)
    source, chunks = dataset.read()
    with atomic(target) as folder:
        folder.mkdir()
        digest = hashlib.sha256()
        labels: list[np.ndarray] = []
        captions: list[str] = []
        n = 0
        with open(folder / FILES[dataset.dtype], "wb") as file:
            for images, chunk_labels, chunk_captions in _checked(dataset, chunks):
                file.write(images.data)
                digest.update(images.data)
                labels += [] if chunk_labels is None else [chunk_labels]
                captions += chunk_captions
                n += len(images)
        if n == 0:
            raise UserError(f"{dataset.name} ({source}) is empty.")
        if dataset.num_classes:
            joined = np.concatenate(labels)
            np.save(folder / LABELS, joined)
            digest.update(joined.data)
        if dataset.captioned:
            written = json.dumps(captions, indent=0, ensure_ascii=False).encode()  # one in a line
            (folder / CAPTIONS).write_bytes(written)
            digest.update(written)
        info = {
            "name": dataset.name,
            "split": dataset.split,
            "n": n,
            "shape": dataset.shape,
            "dtype": dataset.dtype,
            "num_classes": dataset.num_classes,
            **({"captions": len(written)} if dataset.captioned else {}),
            "sha256": digest.hexdigest(),
            "source": source,
        }
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n")


def _checked(dataset: "Dataset", chunks: Iterator[Chunk]) -> Iterator[tuple[np.ndarray, np.ndarray | None, list[str]]]:
    """The chunks in the form the files hold, so that a reader's mistake stops here and not in a training run."""
    for images, labels, *rest in chunks:
        captions = [str(caption) for caption in rest[0]] if rest else []
        if images.dtype != dataset.dtype or images.shape[1:] != dataset.shape:
            raise UserError(f"{dataset.name} gave {images.dtype} items {images.shape[1:]}, not {dataset.dtype} {dataset.shape}.")
        if not np.isfinite(images).all():
            raise UserError(f"{dataset.name} holds numbers that are not finite: repair its files.")
        if (labels is None) != (dataset.num_classes == 0):
            raise UserError(f"{dataset.name} has num_classes={dataset.num_classes}, which its labels contradict.")
        if labels is not None:
            labels = np.ascontiguousarray(labels, dtype=np.int64)
            if len(labels) != len(images) or labels.min() < 0 or labels.max() >= dataset.num_classes:
                raise UserError(f"{dataset.name} has labels that do not fit its {dataset.num_classes} classes.")
        if len(captions) != (len(images) if dataset.captioned else 0):
            raise UserError(f"{dataset.name} gave {len(captions)} captions to {len(images)} items.")
        yield np.ascontiguousarray(images), labels, captions


def _whole(target: Path) -> bool:
    """Whether the folder holds what its info.json says: the sizes, and up to HASHED bytes the content."""
    try:
        info = json.loads((target / "info.json").read_text())
        dtype, n = _dtype(info), info["n"]
        least = {LABELS: 8 * n if info["num_classes"] else 0, CAPTIONS: info.get("captions", 0)}  # 0: there is no such file
        files = [target / FILES[dtype], *(target / name for name, bytes_ in least.items() if bytes_)]
        stats = [(file, stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()]]
        size = stats[0][2]
        if size != n * math.prod(info["shape"]) * np.dtype(dtype).itemsize or any(size < least[file.name] for file, _, size in stats[1:]):
            return False
        return size > HASHED or _sha256(*stats) == info["sha256"]
    except Exception:  # numpy raises many kinds for a damaged file
        return False


@cache
def _sha256(images: tuple[Path, int, int], *others: tuple[Path, int, int]) -> str:
    """ImageSet.sha256 of files (path, time of change, size), which are read once in a process while they stay as they are."""
    with open(images[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for path, *_ in others:
        digest.update(np.load(path).data if path.name == LABELS else path.read_bytes())
    return digest.hexdigest()


def _dtype(info: dict) -> str:
    """The type of the items; caches made when uint8 was the only type do not say it."""
    return info.get("dtype", "uint8")


def _open(target: Path) -> ImageSet:
    info = json.loads((target / "info.json").read_text())
    # Mode "c", not "r": torch.from_numpy warns about arrays that cannot be written, and a private copy is as safe.
    images = np.memmap(target / FILES[_dtype(info)], dtype=_dtype(info), mode="c", shape=(info["n"], *info["shape"]))
    labels = np.load(target / LABELS) if info["num_classes"] else None
    captions = json.loads((target / CAPTIONS).read_bytes()) if info.get("captions") else None
    return ImageSet(images, labels, info["name"], info["split"], info["num_classes"], info["sha256"], captions)
