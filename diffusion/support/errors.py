"""The one exception whose message is written for the user, and how such messages reach the user."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

SENTENCES = "DIFFUSION_SENTENCES"  # set by a command that has set HYDRA_FULL_ERROR itself, for the processes that it starts
TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1" and SENTENCES not in os.environ  # the user's wish, as it was at the start

INTERRUPTED = 128 + 2  # the exit code of a command that its user has ended, by SIGINT
FULL = re.compile("out of memory|allocate memory", re.I)  # how torch says it


class UserError(Exception):
    """One sentence for the user that names the thing and the remedy; the commands print it and exit non-zero."""


class Refused(SystemExit):
    """The end of a command that has printed its one sentence; exit code 1."""

    def __init__(self, sentence: str) -> None:
        super().__init__(1)
        self.sentence = sentence


def printable(value: object, most: int = 60) -> str:
    """What a file says that anybody may have written, for a line on a terminal: one line of printable characters, `most` of them."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(str(value).split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def refuse(sentence: str) -> NoReturn:
    """Print a sentence on standard error and end the command."""
    print(f"error: {printable(sentence, 10_000)}", file=sys.stderr)
    raise Refused(sentence)


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """ "; did you mean WORD" of what is known and looks alike, with `before` before it; "" if nothing does."""
    from difflib import get_close_matches

    alike = get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(before + name for name in alike)}" if alike else ""


@contextmanager
def one_sentence(*kinds: type[Exception], say: Callable[[Exception], str] = str) -> Iterator[None]:
    """A UserError, ValueError or one of `kinds` becomes a sentence on standard error and exit code 1; Ctrl-C one, and 130.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is left, as it is for Hydra's own errors."""
    expected: tuple[type[Exception], ...] = (UserError, ValueError, *kinds)
    try:
        yield
    except expected as error:
        if TRACEBACK:
            raise
        refuse(" ".join(say(error).split()))
    except KeyboardInterrupt:
        if TRACEBACK:
            raise
        print("interrupted: what was written before is whole.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if TRACEBACK or not (isinstance(error, MemoryError) or FULL.search(str(error))):
            raise
        said = re.search(r"[Uu]nable to allocate [^,.]+|[Tt]ried to allocate [\d.]+ \w+", str(error))
        refuse(
            f"There is not enough memory for this{f' ({said.group()})' if said else ''}: lower batch_size, sample_batch_size, "
            "dataset.image_size, or the sizes of the network."
        )
