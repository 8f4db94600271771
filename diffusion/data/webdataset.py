"""WebDataset: pictures with captions and classes in tar files."""

import json
import logging
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.data.captions import caption, decoded
from diffusion.data.image_folder import cover
from diffusion.pictures import FORMATS, read_image
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Some

log = logging.getLogger(__name__)
_CHUNK = 256  # samples in memory at once while the cache is made


@dataclass(frozen=True)
class WebDataset(PictureDataset):
    """The samples of the shards `root`/*.tar, or of the one shard `root`, in the order of the shards' names and of each.

    A sample is the files of one name in a tar file, which follow each other: its picture (the first that is png, jpg, jpeg, webp or bmp),
    with `num_classes` its class in .cls, a number from 0, and its caption in .txt, or with `caption`=json in the key `text` or `caption` of
    .json; none (null) reads no captions. A sample without a caption has "", one without a picture is left out, and how many there are is
    said. Each picture is read and cropped as `ImageFolder` does.

    Raises UserError: no shards, a missing library, a shard that is damaged or cut off (it is named), no pictures, a picture, class or
    caption that cannot be read (its sample is named)."""

    image_size: Few | list[Few] = 64
    num_classes: Some = 0
    flip: bool = True
    caption: str | None = "txt"

    name: ClassVar[str] = "webdataset"
    splits: ClassVar[tuple[str, ...]] = ("train",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (1, 3):
            raise UserError(f"webdataset makes images of 3 channels or 1: dataset.channels={self.channels} is neither.")
        if self.caption not in ("txt", "json", None):
            raise UserError(f"dataset.caption={self.caption} is none of the files that hold captions: say txt, json or null.")

    @property
    def captioned(self) -> bool:
        """Whether captions are read."""
        return self.caption is not None

    @cached_property
    def shards(self) -> list[Path]:
        """The tar files, in order. Raises UserError if there are none."""
        root = Path(self.root).expanduser().resolve()
        found = [root] if root.is_file() else sorted(root.glob("*.tar"))
        if not found:
            raise UserError(f"There is no shard {root}/*.tar: point dataset.root at the folder of your tar files, or at one of them.")
        return found

    def facts(self) -> dict[str, Any]:
        return {}

    def key(self) -> Any:
        stats = [(str(shard), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in self.shards]
        return [self.image_size, self.channels, self.num_classes, self.caption, stats]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        return f"{len(self.shards)} shards in {self.shards[0].parent}", self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        from tqdm import tqdm

        rows: list[tuple[np.ndarray, int, str]] = []
        pictures = captions = others = 0
        for sample in tqdm((sample for shard in self.shards for sample in samples(shard)), desc="samples", disable=None):
            place = f"{sample['__key__']} in {sample['__url__']}"
            if (picture := next((sample[kind] for kind in sample if f".{kind}" in FORMATS), None)) is not None:
                rows.append((self._pixels(picture, place), self._label(sample, place), self._caption(sample, place)))
                pictures, captions = pictures + 1, captions + bool(rows[-1][2])
            else:
                others += 1
            if len(rows) == _CHUNK:
                yield self._chunk(rows)
                rows = []
        if not pictures:
            raise UserError(
                f"No sample of {self.shards[0].parent} has a picture ({', '.join(sorted(FORMATS))}): name its files as 0001.png and "
                "0001.txt, with no other dot."
            )
        told = (f", {captions:,} with captions" * self.captioned) + (f"; left out: {others:,} samples without a picture" * bool(others))
        log.info("%s samples%s", f"{pictures:,}", told)
        if rows:
            yield self._chunk(rows)

    def _chunk(self, rows: list[tuple[np.ndarray, int, str]]) -> Chunk:
        pixels, labels, captions = zip(*rows, strict=True)
        return np.stack(pixels), np.array(labels) if self.num_classes else None, captions if self.captioned else ()

    def _pixels(self, content: bytes, place: str) -> np.ndarray:
        try:
            image = read_image(BytesIO(content), self.channels)
        except ValueError as error:
            raise UserError(f"The picture of {place} cannot be read ({error}): repair the shard, or take the sample out.") from error
        return np.asarray(cover(image, *self.shape[:2])).reshape(self.shape)

    def _label(self, sample: dict[str, Any], place: str) -> int:
        if not self.num_classes:
            return 0
        written = decoded(sample.get("cls", b""), f"{place} (.cls)").strip()
        if not re.fullmatch("[0-9]{1,9}", written) or int(written) >= self.num_classes:
            raise UserError(
                f"The class of {place} is {written!r}, and .cls should hold a number from 0 to {self.num_classes - 1}: say how many "
                "classes there are by dataset.num_classes, or 0 to leave them out."
            )
        return int(written)

    def _caption(self, sample: dict[str, Any], place: str) -> str:
        if self.caption is None or self.caption not in sample:
            return ""
        text = decoded(sample[self.caption], f"{place} (.{self.caption})")
        if self.caption == "txt":
            return text.strip()
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"The .json of {place} is no JSON ({error}): repair the shard, or say dataset.caption=txt.") from error
        held = told if isinstance(told, dict) else {}
        return caption(held.get("text", held.get("caption")), f"The .json of {place}").strip()


def samples(shard: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard: the bytes of its files by their suffixes, in lower case, beside __key__ and __url__.

    Raises UserError for a missing library, for a shard that cannot be read or has no end, and for one whose samples are in pieces."""
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError as error:
        raise UserError("dataset=webdataset needs the webdataset library: run pip install -e .[webdataset].") from error
    try:
        # Opened here, since the library takes a name such as pipe:COMMAND for a command.
        require_end(shard)
        seen = set()
        with open(shard, "rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}])):
                if sample["__key__"] in seen:
                    raise UserError(f"The files of {sample['__key__']} in {shard} are not beside each other: sort its files by name.")
                seen.add(sample["__key__"])
                yield sample
    except UserError:
        raise
    except Exception as error:  # tarfile and its decompressors raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise UserError(f"The shard {shard} cannot be read ({reason}): bring an undamaged copy.") from error


def require_end(shard: Path) -> None:
    """Raises UserError for a tar file that does not end as such files do, with a block of zeros: what is damaged or cut off between two
    files would pass for a shorter one."""
    with tarfile.open(shard) as opened:
        opened.getmembers()
        opened.fileobj.seek(opened.offset)
        last = opened.fileobj.read(tarfile.BLOCKSIZE)
    if len(last) < tarfile.BLOCKSIZE or any(last):
        raise UserError(f"The shard {shard} is damaged or cut off, {opened.offset:,} bytes after its beginning: bring an undamaged copy.")
