"""Files of runs' folders, which anyone may have written: opened only where they are what they should be, and never waited for."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffusion.support.errors import UserError

NUMBERS, LINE = 2**30, 2**22  # bytes of metrics.jsonl, and of a line of it: a long training's have some 2**26 and 2**13
PICTURE, SETTINGS = 2**26, 2**21


def within(path: Path, folder: Path) -> bool:
    """Whether `path` lies in `folder` when links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def opened(path: Path, folder: Path, most: int) -> BinaryIO:
    """The file `path`, for reading. Raises OSError where there is none, and UserError unless it is a regular file of at most `most` bytes
    that lies in `folder` when links are followed. A pipe, which would be waited for, is not opened."""
    if not within(path, folder):
        raise UserError(f"{path.name} is a link out of the folder")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path.name} is not a file")
    if found.st_size > most:
        raise UserError(f"{path.name} has {found.st_size:,} bytes, more than any run writes")
    return path.open("rb")


def content(path: Path, folder: Path, most: int) -> bytes:
    """The bytes of `path`; raises as `opened` does."""
    with opened(path, folder, most) as file:
        return file.read()


def picture_of(path: Path) -> bytes | None:
    """A run's picture, RUN/samples/FILE; None where it is gone, or is not a file of the run."""
    try:
        return content(path, path.parents[1], PICTURE)
    except (OSError, UserError):
        return None


def locked(path: Path) -> bool | None:
    """Whether a process holds the lock `path` of a run's folder; None where there is none to ask. The question is a shared lock, held for
    some microseconds, which a training that is at work never notices."""
    try:
        import fcntl

        with opened(path, path.parent, SETTINGS) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError, UserError):
        return None
    return False


def lines_of(path: Path, folder: Path) -> Iterator[bytes]:
    """The lines of `path`; raises as `opened` does, and UserError for one that is too long to be read at once."""
    with opened(path, folder, NUMBERS) as file:
        while line := file.readline(LINE + 1):
            if len(line) > LINE:
                raise UserError(f"{path.name} has a line of more than {LINE:,} bytes, which no run writes")
            yield line


def json_again(value: Any, depth: int) -> bool:
    """Whether what JSON gave can be written as JSON again, unlike an infinity (1e999), and is no deeper than `depth`."""
    if isinstance(value, dict | list):
        return depth > 0 and all(json_again(inner, depth - 1) for inner in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) < 1e300
