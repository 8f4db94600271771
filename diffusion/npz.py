"""Files of NumPy, which anybody may have made: what is in them, before it is read. Nothing in one is executed."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from diffusion.support.errors import UserError

# What reading a damaged or foreign npz raises: of its zip, of a header, which is parsed as Python's literals, of numbers that are too many.
DAMAGE = (
    *(BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, NotImplementedError, OverflowError),
    *(SyntaxError, TokenError, RecursionError, MemoryError, RuntimeError),
)

LONGEST = 2**16  # bytes of a header

Header = tuple[tuple[int, ...], np.dtype, bool]  # of an array: its shape, its type, and whether its columns lie together


def headers(path: Path) -> dict[str, Header]:
    """What the arrays of an npz are, by name; none is read."""
    with reading(path), ZipFile(path) as archive:
        found = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                found[name.removesuffix(".npy")] = header(file)
        return found


def header(file: Any) -> Header:
    """The header of an array's file, behind which its numbers begin. Raises ValueError for one that is too long, and what DAMAGE lists."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    size = file.read(2 if version == (1, 0) else 4)
    if (length := int.from_bytes(size, "little")) > LONGEST:
        raise ValueError(f"a header of {length:,} bytes")
    shape, fortran, kind = read(BytesIO(size + file.read(length)))
    return shape, kind, fortran


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged or foreign npz raises, as a UserError."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read as an npz ({error}).") from error
