"""Files that are either whole or absent, and locks that die with their holder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a free temporary path beside `path`; what is written there becomes `path` in one move.

    The caller makes a file or a folder at the yielded path. On success it is fsynced and takes the target's name with
    os.replace, so a reader sees the old content or the new, never a part. On any exception it is removed and `path`
    stays as it was. A process that is killed outright leaves only the temporary, whose name `temporaries` knows.
    A folder can only take the name of a target that does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp claims a name no other process has; the content goes inside it, so it may be a file or a folder.
    claim = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        temporary = claim / path.name
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _fsync(written)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(claim, ignore_errors=True)


def temporaries(path: str | Path) -> list[Path]:
    """What killed writers of `path` left behind; only the holder of the target's lock may remove it."""
    path = Path(path)
    return [entry for entry in path.parent.glob(".*.tmp") if entry.name.startswith(f".{path.name}.")]


@contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold the exclusive lock `path` between processes, waiting for it; the kernel frees it if the holder dies.

    Where there is no flock (Windows, some network file systems) nothing is locked: several processes may then make the guarded file, which
    is never torn, since `atomic` writes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the file frees the lock


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
