"""Files that are either whole or absent, seals that show a bit that has changed, and locks that die with their holder."""

import errno
import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from diffusion.support.errors import UserError

PLACES: ContextVar[tuple[Path, ...] | None] = ContextVar("where this command may write; None: anywhere", default=None)
SEAL = hashlib.sha256().digest_size  # bytes
HELD: set[int] = set()  # descriptors that may have a lock


@contextmanager
def held(path: Path, flags: int) -> Iterator[int]:
    """An open descriptor of `path`, for a lock. A forked child (a DataLoader's worker) closes it at once, since a lock lives for as long as
    any process has the descriptor."""
    handle = os.open(path, flags, 0o666)
    HELD.add(handle)
    try:
        yield handle
    finally:
        if handle in HELD:
            HELD.remove(handle)
            os.close(handle)


def let_go() -> None:
    """In a forked child: the locks are its parent's."""
    while HELD:
        os.close(HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=let_go)


@contextmanager
def writing_in(places: Iterable[str | Path] | None) -> Iterator[None]:
    """Within the context nothing is written but in these folders; None for anywhere.

    A run's file names places too, and anybody may have made it: what is there is read, and nothing is written there unless the command
    says so as well."""
    before = PLACES.set(None if places is None else tuple(Path(place).expanduser().resolve() for place in places))
    try:
        yield
    finally:
        PLACES.reset(before)


def writable(path: str | Path) -> Path:
    """The path. Raises UserError for one that leads, by links too, out of the places of `writing_in`, or to what is neither a file nor a
    folder: a pipe would be waited for."""
    path, places = Path(path), PLACES.get()
    whole = path.expanduser().resolve()
    if whole.exists() and not (whole.is_file() or whole.is_dir()):
        raise UserError(f"{path} is neither a file nor a folder, and nothing is written to it: say another name.")
    if places is not None and not any(whole.is_relative_to(place) for place in places):
        raise UserError(
            f"The run's own file would have {path} written{f', which leads to {whole}' * path.is_symlink()}, where this command was not "
            f"told to write: if that place is yours, name its folder, such as paths.cache={whole.parent}."
        )
    return path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a free temporary path beside `path`; what is written there becomes `path` in one move.

    The caller makes a file or a folder at the yielded path. On success it is fsynced and takes the target's name with
    os.replace, so a reader sees the old content or the new, never a part. On any exception it is removed and `path`
    stays as it was. A process that is killed outright leaves only the temporary, whose name `temporaries` knows.
    A folder that had the name moves into the temporary first and goes with it, so that only a kill between the two moves leaves none.
    """
    path = writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp claims a name no other process has; the content goes inside it, so it may be a file or a folder.
    claim = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    with held(claim, os.O_RDONLY) as handle:
        _locked(handle)
        try:
            temporary, places = claim / path.name, PLACES.get()
            with writing_in(None if places is None else [*places, claim]):  # what may be written may be written in parts
                yield temporary
            written = [*temporary.rglob("*"), temporary]
            if len(written) > 100:
                os.sync()  # once, where thousands of pictures would each wait for the disk
            else:
                for file in written:
                    _fsync(file)
            if temporary.is_dir() and path.is_dir():
                os.replace(path, claim / f"{path.name}.before")
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(claim, ignore_errors=True)


def temporaries(path: str | Path) -> list[Path]:
    """What killed writers of `path` left behind; only the holder of the target's lock may remove it."""
    path = Path(path)
    return [entry for entry in path.parent.glob(".*.tmp") if entry.name.startswith(f".{path.name}.")]


def sweep(path: str | Path) -> None:
    """Remove what killed writers of `path` left behind: a writer that is at work holds its temporary."""
    for entry in temporaries(path):
        with suppress(FileNotFoundError), held(entry, os.O_RDONLY) as handle:  # gone: its writer has just ended
            if _locked(handle):
                shutil.rmtree(entry, ignore_errors=True)


def _locked(handle: int) -> bool:
    """Take the lock of an open file or folder; False where another process has it, or where there are no locks."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def free(handle: int) -> bool:
    """Take the lock of an open file or folder; False where another process has it. Where there are no locks nothing is locked."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def seal(path: str | Path) -> None:
    """Give a zip file, which `torch.save` writes, a comment: the sha256 of all that stands before it. Readers of zip files skip it."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)  # the last field of a zip file is the length of its comment
        file.write(SEAL.to_bytes(2, "little"))
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest())


def broken(path: str | Path) -> bool:
    """Whether a sealed file has changed since, be it by a bit, or was cut off; False for a zip file that was never sealed."""
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[-22:-18] == b"PK\5\6" and content[-2:] == bytes(2):  # the end of a zip file without a comment
                return False
            with memoryview(content) as all_of_it, all_of_it[:-SEAL] as sealed:
                return hashlib.sha256(sealed).digest() != content[-SEAL:]


@contextmanager
def appending(path: str | Path) -> Iterator[None]:
    """What is written at the end of a file inside is taken back if the disk does not take all of it."""
    size = os.path.getsize(path) if os.path.exists(path) else 0
    try:
        yield
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def lines(path: str | Path) -> int:
    """How many whole lines a file has; none if there is no file."""
    return Path(path).read_bytes().count(b"\n") if Path(path).exists() else 0


def cut(path: str | Path, count: int, stays: Callable[[bytes], bool] = lambda line: False) -> None:
    """Leave the first `count` lines of a file, or all that are whole if there are fewer, and those after them that `stays` says; with none
    the file goes."""
    whole = [line for line in Path(path).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = b"".join([*whole[:count], *filter(stays, whole[count:])])
    if not kept:
        Path(path).unlink()
    elif len(kept) != Path(path).stat().st_size:
        with atomic(path) as temporary:
            temporary.write_bytes(kept)


@contextmanager
def lock(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold the exclusive lock `path` between processes, waiting for it; the kernel frees it if the holder dies.

    Where there is no flock (Windows, some network file systems) nothing is locked: several processes may then make the guarded file, which
    is never torn, since `atomic` writes it. Raises BlockingIOError, without `wait`, if another process holds it or has just taken its file
    away."""
    path = writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path, os.O_RDWR | os.O_CREAT) as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except (ImportError, OSError):
            pass
        if not wait and not still_at(path, handle):  # its last holder has taken the file away
            raise BlockingIOError(errno.EAGAIN, "the lock is another file now", str(path))
        yield  # closing the file frees the lock


def still_at(path: str | Path, handle: int) -> bool:
    """Whether the file of this name is still the one that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def require_writable(folder: str | Path, key: str) -> None:
    """Raises UserError, which names `key`, unless files can be made in `folder` or, where it is not there yet, a folder of its name. It
    leaves nothing behind."""
    folder = Path(folder).absolute()
    try:
        there = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=there):
            pass
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be written to ({error.strerror}); say another place.") from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
