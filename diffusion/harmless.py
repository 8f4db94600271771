"""The words of a command that a file says, which anybody may have made: what they may ask for, and what is refused before it is looked at
any further."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffusion.composing import composed_of, read_word
from diffusion.config import STAGED, own
from diffusion.schemas import TEXTS, container
from diffusion.shell import GROUPS
from diffusion.support.build import spread
from diffusion.support.errors import UserError
from diffusion.support.trust import vet

REFUSED = ("trust", "hydra", "launcher", "sweeper", "resume")  # what may run other code, or elsewhere
REPLACED = ("out", "name", "paths", "keep_features")  # where things are written is said by who makes them again
MOST, LETTERS, DEPTH = 1000, 10_000, 20  # words, letters of all, and brackets in one another; ours have some 30, 1000 and 3
LONGEST = 200  # letters of a key
NAME = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")  # of a class or a function
CHOICE = re.compile(r"[\w-]+")  # a file of conf/
FOLDERS = ("metric", "sampler", "grid", "guidance", "dataset", "codec", "conditions", "schedule", "network", "parameterization", "edit")


def harmless(words: Sequence[str], folder: Path) -> list[str]:
    """The words that are followed, in which a path is that of a file of `folder`. Raises UserError, which names the word, for one that
    names trust, a class, a place outside of the folder, or anything of Hydra's own."""
    if len(words) > MOST:
        raise UserError(f"The file's command has {len(words)} words, which no command of ours has.")
    if (letters := sum(map(len, words))) > LETTERS:
        raise UserError(f"The file's command has {letters:,} letters, which no command of ours has: type its long words yourself.")
    return [safe for word in words if (safe := safe_word(word, folder)) is not None]


def safe_word(word: str, folder: Path) -> str | None:
    """The word, or None for one that is replaced. Raises UserError as `harmless`."""
    key = word.partition("=")[0].lstrip("+~")
    if key in TEXTS and word.startswith(f"{key}="):  # taken as it is typed, and read by nobody else
        return word
    if len(key) > LONGEST or max(accumulate((letter in "[{(") - (letter in "]})") for letter in word), default=0) > DEPTH:
        raise UserError(f"The file's command has the word {word!r:.80}, which is not followed: no word of ours is so long or so deep.")
    head = re.split(r"[./@:]", key)[0]
    if head in REFUSED or "_target_" in word or "$" in word or "\\" in word or not re.fullmatch(r"[+]{0,2}[\w.]+=.*", word, re.S):
        raise UserError(
            f"The file's command has the word {word!r:.80}, which is not followed: a file says nothing of trust, classes or Hydra."
        )
    if head in REPLACED:
        return None
    _, value = read_word(word)
    for leaf in texts_of(value):
        if key in GROUPS and (leaf == "custom" or not CHOICE.fullmatch(leaf)):
            raise UserError(f"The file's command has the word {word!r:.80}, which is not followed: it names no file of conf/{key}.")
        if key not in GROUPS and is_place(leaf, folder):
            found = (folder / leaf).resolve()
            if not found.is_relative_to(folder.resolve()) or not found.exists() or leaf.startswith("~"):
                raise UserError(
                    f"The file's command has the word {word!r:.80}, which is not followed: it is a place outside of {folder}. If that "
                    f"place is yours, type the word itself: {key}=PATH."
                )
            if leaf != value:
                raise UserError(f"The file's command has the word {word!r:.80}, a place among others: type the word itself.")
            return f"{key}={found}"
        if key not in GROUPS and NAME.fullmatch(leaf):
            raise UserError(
                f"The file's command has the word {word!r:.80}, which is not followed: it names a class, or a file that is not there."
            )
    return word


def texts_of(value: Any) -> Iterator[str]:
    """Every text in plain data, keys too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str):
        yield value


def is_place(text: str, folder: Path) -> bool:
    """Whether a text could be that of a file: one that looks so, or is there, seen from here or from the folder."""
    return any(mark in text for mark in ("/", "~", "\0", "..")) or os.path.exists(text) or os.path.exists(folder / text)


def require_known_classes(words: Sequence[str], program: str, run: Mapping[str, Any] | None) -> None:
    """Raises UserError where the words, put over the run's own configuration, build anything but this package's classes."""
    cfg, typed = composed_of(words, program)
    trust = cfg.trust
    groups = {key: container(cfg[key], resolve=False) for key in FOLDERS if cfg.get(key)}
    if "metric" in groups:
        groups["metric"] = spread(groups["metric"], "metric", typed, STAGED["metric"]) if run is None else {}
    vet(groups, trust, "the file's command")
    if run is not None:
        for key in ("precision", "sample_batch_size"):  # to which a metric's file refers
            cfg[key] = run[key] if cfg[key] is None else cfg[key]
        vet(own(run, cfg, typed), trust, "the file's command, and the run's own words")
