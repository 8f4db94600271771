"""The command that is running, for all that it makes to say: which it is, and its words as they were typed, a list and no shell's line."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

RUNNING: ContextVar[tuple[str, tuple[str, ...]] | None] = ContextVar("the command that is running; None in a library's use", default=None)


@contextmanager
def running(program: str, words: Sequence[str]) -> Iterator[None]:
    """Within the context what is made was made by these words of `program`: train, sample, evaluate, compare ..."""
    before = RUNNING.set((program, tuple(map(str, words))))
    try:
        yield
    finally:
        RUNNING.reset(before)


def made_by_command() -> dict[str, Any] | None:
    """{"program": ..., "words": [...]} of the command that is running, as plain data; None outside of one."""
    said = RUNNING.get()
    return None if said is None else {"program": said[0], "words": list(said[1])}


def as_text(**more: str) -> dict[str, str]:
    """The command as the texts of a picture, which PNG files keep beside their pixels: JSON under `command`; nothing outside of one."""
    said = made_by_command()
    return {} if said is None else {"command": json.dumps({**said, **more})}
