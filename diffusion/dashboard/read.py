"""runs/*/metrics.jsonl, with config.yaml and samples/*.png beside it, as plain data.

Runs in progress, half a line at the end, and steps that a resumed run recorded twice can all be read; nothing is written.
"""

import json
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffusion.support.errors import UserError

AXES = ("step", "images", "time")
NUMBER = (int, float, type(None))  # None is a number that was not finite
PICTURE = re.compile(r"(?P<recipe>.+)-step=(?P<step>\d+)\.png")


@dataclass(frozen=True)
class Series:
    """The values of one key in the order of steps. `at` are their positions on the run's axes, `passports` their passports (or None)."""

    at: array
    values: array
    passports: list[dict | None]


@dataclass(frozen=True)
class Run:
    """A run's folder as data. `steps`, `images` and `seconds` are its axes; `profiles` the last list over t of each key, with its step;
    `samples` the pictures of each recipe with their steps; `modified` when a number last came, in seconds since 1970."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    profiles: dict[str, tuple[int, list[float]]] = field(default_factory=dict)
    samples: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)
    modified: float = 0.0


class Reader:
    """`reader()` gives the runs below `folder`, sorted by name; a later call reads only those whose files have changed since.

    Raises UserError if `folder` is not a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {folder}: give the folder that holds the runs' folders, such as runs/.")
        self.known: dict[Path, tuple[list, Run]] = {}

    def __call__(self) -> list[Run]:
        known = {}
        for path in sorted(self.folder.glob("*/metrics.jsonl")):
            signature = [signed(path), signed(path.parent / "config.yaml"), signed(path.parent / "samples")]
            old = self.known.get(path)
            try:
                known[path] = old if old and old[0] == signature else (signature, read_run(path.parent))
            except FileNotFoundError:  # removed while we read
                continue
        self.known = known
        return [run for _, run in known.values()]


def signed(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file does; None if there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def records(path: Path) -> Iterator[dict]:
    """The lines that are whole and have a step."""
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line, parse_constant=lambda _: None)  # NaN and infinities, which are not JSON
        except ValueError:  # half a line: a writer that is at work, or was killed
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


class Clock:
    """Seconds of training until a step. A resumed run goes back in steps, and so does its clock; pauses are not counted."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self.zero: float | None = None
        self.last = -1

    def __call__(self, step: int, time: float) -> float:
        if self.zero is None:
            self.zero = time
        if step < self.last:
            before = [past for past in self.at if past <= step]
            self.zero = time - (self.at[max(before)] if before else 0.0)
        self.last = step
        self.at[step] = time - self.zero
        return self.at[step]


def read_run(folder: Path) -> Run:
    """One run; of two records of a key at the same step the later one counts."""
    clock = Clock()
    axis: dict[int, tuple[float, float]] = {}
    table: dict[str, dict[int, tuple[float, dict | None]]] = {}
    profiles: dict[str, tuple[int, list[float]]] = {}
    passports: dict[tuple, dict] = {}
    for record in records(folder / "metrics.jsonl"):
        step, images, time = record["step"], record.get("images"), record.get("time")
        old = axis.get(step, (math.nan, math.nan))
        axis[step] = (old[0] if images is None else images, old[1] if time is None else clock(step, time))
        passport = interned(record.get("passport"), passports)
        for key, value in record.items():
            kind = type(value)
            if key in AXES:
                continue
            if kind in NUMBER:
                table.setdefault(key, {})[step] = (math.nan if value is None else value, passport)
            elif kind is list and all(type(item) in NUMBER for item in value):
                profiles[key] = step, [math.nan if item is None else item for item in value]
    steps = sorted(axis)
    position = {step: i for i, step in enumerate(steps)}
    return Run(
        name=folder.name,
        config=flat_config(folder / "config.yaml"),
        steps=steps,
        images=[axis[step][0] for step in steps],
        seconds=[axis[step][1] for step in steps],
        series={key: series(column, position) for key, column in table.items()},
        profiles=profiles,
        samples=pictures(folder / "samples"),
        modified=(folder / "metrics.jsonl").stat().st_mtime,
    )


def series(column: dict[int, tuple[float, dict | None]], position: dict[int, int]) -> Series:
    """{step: (value, passport)} in the order of steps."""
    steps = sorted(column)
    values = array("f", [column[step][0] for step in steps])
    return Series(array("I", [position[step] for step in steps]), values, [column[step][1] for step in steps])


def interned(passport: dict | None, known: dict[tuple, dict]) -> dict | None:
    """The passport without its step, the same object for the same content (the id stands for all but these)."""
    if passport is None or "id" not in passport:
        return None
    content = tuple(str(passport.get(name)) for name in ("id", "code", "statistics", "nfe", "intervals", "weights", "device"))
    return known.setdefault(content, {name: value for name, value in passport.items() if name != "step"})


def flat_config(path: Path) -> dict[str, Any]:
    """config.yaml by dotted keys, {} where it is missing or cannot be read."""
    try:
        config = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(config) if isinstance(config, dict) else {}


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """{"schedule": {"_target_": "a.Cosine", "s": 0.008}} -> {"schedule": "Cosine", "schedule.s": 0.008}; lists as JSON."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        match value:
            case dict():
                found |= flat(value, key)
            case list():
                found[key] = json.dumps(value, default=str)
            case str() if name == "_target_":
                found[prefix or "_target_"] = value.rpartition(".")[2]
            case float() if not math.isfinite(value):
                found[key] = str(value)
            case bool() | int() | float() | str() | None:
                found[key] = value
            case _:  # a date, say
                found[key] = str(value)
    return found


def pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The sample grids of each recipe, by step; hidden files are pictures being written."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")):
        if match := PICTURE.fullmatch(path.name):
            found.setdefault(match["recipe"], []).append((int(match["step"]), path))
    return {recipe: sorted(grids) for recipe, grids in found.items()}
