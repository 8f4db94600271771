"""The command of a number, drawn by a seed and run; and what all of them share: imports that are made once, and a run."""

import random
from pathlib import Path

from drawing import COMMANDS, OFTEN, drawn
from forks import imports
from judging import Outcome, outcome
from PIL import Image


def numbered(index: int, seed: int, at: Path, train: bool = True) -> Outcome:
    """The outcome of the command of this number; `at` is as `prepared` leaves it."""
    rng = random.Random(f"{seed}/{index}")
    command, here = COMMANDS[rng.choice(OFTEN)], at / str(index)
    return outcome(command, drawn(rng, command, here=here, cache=at / "cache"), here, at / "run", train)


def prepared(at: Path) -> Path:
    """A folder in which the commands run, with the run that some of them read."""
    imports()
    words = [word.format(here=at / "first", cache=at / "cache") for word in COMMANDS["train"].base.split()]
    words = [*(word for word in words if not word.startswith(("name=", "paths.runs="))), "name=run", f"paths.runs={at}"]
    first = outcome(COMMANDS["train"], words, at / "first", None)
    assert first.code == 0, first.said
    Image.new("L", (8, 8), 200).save(at / "cache" / "picture.png")
    return at
