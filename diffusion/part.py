"""The images of a call of sample.py while they are made: on the disk, by any number of processes. A call that was stopped goes on."""

import errno
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.support.errors import UserError
from diffusion.support.files import free, held, still_at, writable, writing_in
from diffusion.support.ranks import rank_and_world, sum_over_ranks

log = logging.getLogger(__name__)
ARRAY = "images.npy"
CALLS = np.dtype(np.int32)  # of the denoiser for an image, and 1; 0 where it is not made yet


class Part:
    """n images in the folder `place`: `images.npy`, an array as NumPy saves it, and `calls`, an int32 for each.

    Every process writes its own rows, wherever they stand; the same rows written twice are the same."""

    def __init__(self, place: Path, n: int) -> None:
        self.place, self.n = place, n
        self.array, self.calls = place / ARRAY, place / "calls"
        with open(kept_within(self.calls), "ab") as file:
            if os.fstat(file.fileno()).st_size < n * CALLS.itemsize:  # what is there is never cut off
                os.truncate(file.fileno(), n * CALLS.itemsize)  # of what is longer than the file zeros are read

    def made(self) -> np.ndarray:
        """The calls of the denoiser for each image, and 1; 0 for those that are missing: [n]."""
        return np.fromfile(self.calls, CALLS, self.n)

    def missing(self) -> Tensor:
        """The numbers of the images that are not made yet, in order."""
        return torch.from_numpy(np.flatnonzero(self.made() == 0))

    def nfe(self) -> int:
        """The mean number of the denoiser's calls for an image, rounded."""
        return round(float(self.made().mean()) - 1)

    def images(self) -> Tensor:
        """All of them, mapped from the disk."""
        return torch.from_numpy(np.load(self.array, mmap_mode="c"))

    def put(self, numbers: Tensor, images: Tensor, calls: int) -> None:
        """Write the images with these numbers, and then that they are there."""
        array = np.ascontiguousarray(images.numpy())
        header = io.BytesIO()
        shape = (self.n, *array.shape[1:])
        np.lib.format.write_array_header_2_0(
            header, {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
        )
        start, size = len(header.getvalue()), prod(array.shape[1:]) * array.itemsize
        with writing(self.array) as file:
            if os.fstat(file).st_size < start + self.n * size:  # every process that comes first writes the same
                os.truncate(file, start + self.n * size)  # before the header says so: another may look
                os.pwrite(file, header.getvalue(), 0)
            for number, image in zip(numbers.tolist(), array, strict=True):
                whole(os.pwrite(file, image.data, start + number * size), size)
            os.fsync(file)
        with writing(self.calls) as file:
            for number in numbers.tolist():
                whole(os.pwrite(file, CALLS.type(calls + 1).tobytes(), number * CALLS.itemsize), CALLS.itemsize)


def whole(written: int, size: int) -> None:
    """Raises OSError for what the disk has not taken whole, which it may do without a word."""
    if written != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kept_within(path: Path) -> Path:
    """The path. Raises UserError for one that is a link out of its folder, or a pipe: what is there may be from anywhere."""
    with writing_in([path.parent]):
        return writable(path)


@contextmanager
def writing(path: Path) -> Iterator[int]:
    """A descriptor to write anywhere in a file. Raises UserError as `kept_within`."""
    file = os.open(kept_within(path), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def part_of(target: Path, made_by: Mapping[str, Any], n: int, anew: bool = False) -> Iterator[Part]:
    """The part of a call that makes `target`, beside it under a name that follows from all that makes the images: what an earlier call has
    left of the same ones is there, unless `anew`. It goes with the context, except that one that was stopped leaves what it has made.

    Raises UserError where another process is making the same."""
    told = {key: value for key, value in made_by.items() if key not in ("command", "environment")}
    digest = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    place, first = kept_within(writable(target).with_name(f".{target.name}.{digest}.part")), rank_and_world()[0] == 0
    with ExitStack() as stack:
        if first:
            stack.enter_context(alone(place))
            for other in parts(target):
                if other != place:
                    remove(other)
            for file in place.iterdir() if anew else ():
                file.unlink()
        together()
        part = Part(place, n)
        try:
            yield part
        except BaseException:
            if count := int((part.made() > 0).sum()):
                log.warning("%d of %d images are kept in %s; the same command goes on with them.", count, n, place)
            elif first:
                shutil.rmtree(place, ignore_errors=True)
            raise
        if first:
            shutil.rmtree(place, ignore_errors=True)


def parts(target: Path) -> list[Path]:
    """What calls that were stopped have left of this target."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.part")
    return [path for path in target.parent.glob(".*.part") if ours.fullmatch(path.name) and path.is_dir()]


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """The lock of a part, which is there from then on. Raises UserError if another process has it."""
    place.mkdir(parents=True, exist_ok=True)
    with held(place, os.O_RDONLY) as handle:
        if not free(handle) or not still_at(place, handle):
            raise UserError(f"Another process is making these images, in {place}: wait for its end, or say another out.")
        yield


def remove(place: Path) -> None:
    """Remove a part that was left; one that a process is at work on stays."""
    with suppress(UserError), alone(place):
        if (place / "calls").exists() and (count := int((np.fromfile(place / "calls", CALLS) > 0).sum())):
            log.warning("%d images of another call, which was stopped, are removed: %s.", count, place)
        shutil.rmtree(place, ignore_errors=True)


def together() -> None:
    """Wait for all ranks."""
    sum_over_ranks(torch.zeros(()))


def share(numbers: Tensor, size: int) -> Sequence[Tensor]:
    """This rank's share of these images, in batches of `size`, dealt like cards."""
    rank, world = rank_and_world()
    return numbers.split(size)[rank::world] if len(numbers) else ()
