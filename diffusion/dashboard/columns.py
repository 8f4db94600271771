"""metrics.jsonl of a run's folder as columns of numbers by step, with the passports they came with."""

import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.dashboard.files import json_again, lines_of
from diffusion.support.errors import UserError

AXES = ("step", "images", "time", "since")
NUMBER = (int, float, type(None))  # None is a number that was not finite
WITHOUT = "/without"  # a number without each group of its images, of which its interval is made: nothing over t
EXACT = 2**53  # the integers below it are floats too, in Python and in the page
KEYS, DEPTH = 10_000, 20  # of a run's numbers, and of a passport; a training writes some 50 and 4


@dataclass(frozen=True)
class Series:
    """The values of one key in the order of steps. `at` are their positions on the run's axes, `passports` their passports (or None)."""

    at: array
    values: array
    passports: list[dict | None]


def records(folder: Path, passed_over: list[bytes]) -> Iterator[dict]:
    """The lines of metrics.jsonl that are whole and have a step; those that are not come to be in `passed_over`, except for a last one that
    is being written. Raises UserError for a step that is none."""
    for line in lines_of(folder / "metrics.jsonl", folder):
        try:
            record = json.loads(line, parse_constant=lambda _: None)  # NaN and infinities, which are not JSON
            step = record["step"]
        except (ValueError, LookupError, TypeError):  # half a line: a writer that is at work, or was killed
            if line.endswith(b"\n") and not line.isspace():
                passed_over.append(line)
            continue
        if type(step) is not int or not 0 <= step < EXACT:
            raise UserError(f"metrics.jsonl has {short(step)} as a step")
        yield record


class Clock:
    """Seconds of training until a step, without pauses: a line says `since` when its process trains, and where that is new the clock goes
    on from what it showed. If a run goes back in steps, so does its clock; of an older one, without `since`, nothing else is known."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # in order, and the seconds of each
        self.seconds: list[float] = []
        self.zero = self.since = math.nan  # before the first line

    def __call__(self, step: int, time: float, since: Any = None) -> float:
        since = since if since is None else real(since, "since")
        again = bool(self.steps) and step < self.steps[-1]
        if again:  # what was recorded after it is recorded again
            known = bisect_right(self.steps, step)
            del self.steps[known:], self.seconds[known:]
        if again or since != self.since:
            self.zero, self.since = (time if since is None else since) - (self.seconds[-1] if self.seconds else 0.0), since
        self.steps.append(step)
        self.seconds.append(time - self.zero)
        return self.seconds[-1]


class Columns:
    """All of a run's metrics.jsonl, by key and step. `profiles` is the last list over t of each key, with its step; `passed_over` the lines
    that could not be read. Raises UserError for what no training wrote."""

    def __init__(self, folder: Path) -> None:
        self.axis: dict[int, tuple[float, float]] = {}  # images and seconds
        self.table: dict[str, dict[int, tuple[float, dict | None]]] = {}
        self.profiles: dict[str, tuple[int, list[float]]] = {}
        self.passed_over: list[bytes] = []
        self.clock, self.passports = Clock(), dict[tuple, dict]()
        for record in records(folder, self.passed_over):
            self.add(record)
            if len(self.table) + len(self.profiles) > KEYS:
                raise UserError(f"metrics.jsonl has more than {KEYS:,} different keys, which no run has")

    def add(self, record: dict) -> None:
        """One line; it counts instead of an earlier one of the same key and step."""
        step, images, time = record["step"], record.get("images"), record.get("time")
        old = self.axis.get(step, (math.nan, math.nan))
        seconds = old[1] if time is None else self.clock(step, real(time, "time"), record.get("since"))
        self.axis[step] = (old[0] if images is None else real(images, "images"), seconds)
        passport = interned(record.get("passport"), self.passports)
        for key, value in record.items():
            if key in AXES or key.endswith(WITHOUT):
                continue
            if type(value) in NUMBER:
                self.table.setdefault(key, {})[step] = (math.nan if value is None else value, passport)
            elif type(value) is list and all(type(item) in NUMBER for item in value):
                self.profiles[key] = step, [math.nan if item is None else real(item, key) for item in value]

    def steps(self) -> list[int]:
        """All steps, in order."""
        return sorted(self.axis)

    def column(self, i: int) -> list[float]:
        """The images (0) or the seconds (1) of each step, in order."""
        return [self.axis[step][i] for step in self.steps()]

    def series(self) -> dict[str, Series]:
        """The values of each key in the order of steps."""
        position = {step: i for i, step in enumerate(self.steps())}
        return {key: series_of(key, column, position) for key, column in self.table.items()}


def short(value: object) -> str:
    """For a message: a word or a small number, the type of anything else."""
    small = isinstance(value, str | float | bool | type(None)) or (isinstance(value, int) and abs(value) < EXACT)
    return repr(value)[:60] if small else "a huge number" if isinstance(value, int) else f"a {type(value).__name__}"


def real(value: Any, key: str) -> float:
    """The number of a key as a float. Raises UserError for what is none, and for one that is larger than any float."""
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        raise UserError(f"{key:.100} is {short(value)} in metrics.jsonl") from None


def series_of(key: str, column: dict[int, tuple[float, dict | None]], position: dict[int, int]) -> Series:
    """{step: (value, passport)} of a key in the order of steps."""
    steps = sorted(column)
    values = array("f", [real(column[step][0], key) for step in steps])
    return Series(array("I", [position[step] for step in steps]), values, [column[step][1] for step in steps])


def interned(passport: Any, known: dict[tuple, dict]) -> dict | None:
    """The passport without its step, the same object for the same content (the id stands for all but these). Raises UserError for what is
    no passport."""
    if passport is None or (isinstance(passport, dict) and "id" not in passport):
        return None
    if not isinstance(passport, dict) or not isinstance(passport["id"], str):
        raise UserError(f"metrics.jsonl has {short(passport)} as a passport")
    content = tuple(str(passport.get(name)) for name in ("id", "code", "statistics", "nfe", "intervals", "weights", "device"))
    if content not in known:
        if not json_again(passport, DEPTH):
            raise UserError(f"metrics.jsonl has a passport that holds infinities, or more than {DEPTH} levels")
        known[content] = {name: value for name, value in passport.items() if name != "step"}
    return known[content]
