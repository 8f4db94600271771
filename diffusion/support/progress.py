"""What a command is doing, on standard error, where it takes long enough to wonder."""

import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

PATIENCE = 3.0  # seconds of silence

T = TypeVar("T")
log = logging.getLogger(__name__)


def speaks() -> bool:
    """Whether this process speaks for all: the first of those that a launcher started, or the only one."""
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def bar(things: Iterable[T], what: str, total: int | None = None, unit: str = "batch") -> Iterator[T]:
    """The same things, with a bar that appears when they take longer than PATIENCE; `what` says what is being done with them.

    Into a file or a pipe it writes a line every ten seconds."""
    from tqdm import tqdm  # so that a command which shows none does not load it

    every = 0.2 if sys.stderr.isatty() else 10
    yield from tqdm(
        things, desc=what, total=total, unit=unit, delay=PATIENCE, mininterval=every, leave=False, dynamic_ncols=True, disable=not speaks()
    )


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Says `what` if it takes longer than PATIENCE: for what cannot be counted."""
    timer = Timer(PATIENCE, lambda: log.info("%s ...", what) if speaks() else None)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def loading(what: str) -> Iterator[None]:
    """`doing` for a command's slow imports. What they make stays as long as the process, so that Python's collector of garbage need not
    search it: not meanwhile, not later, and not at the end, which alone takes a second and more."""
    first, enabled = gc.get_freeze_count() == 0, gc.isenabled()
    if first:
        gc.disable()
    try:
        with doing(f"loading {what}"):
            yield
    finally:
        if first:  # only then: of what a sweep has measured since, cycles are to be found
            gc.freeze()
        if enabled:
            gc.enable()
