"""runs/*/metrics.jsonl, with config.yaml, words.yaml and samples/*.png beside it, as plain data.

Runs in progress, half a line at the end, and steps that a resumed run recorded twice can all be read; nothing is written. A folder may come
from anywhere: a run whose numbers cannot be what a training wrote is left out, and `Reader.warnings` names it and says why.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.dashboard.columns import EXACT, Columns, Series
from diffusion.dashboard.files import SETTINGS, content, locked, within
from diffusion.dashboard.found import diagnosis_of, front_of
from diffusion.published import Published
from diffusion.support.errors import UserError
from diffusion.support.trust import parsed

FILES = ("metrics.jsonl", "config.yaml", "words.yaml", "samples", "diagnose.json", "pareto.json")
PICTURE = re.compile(r"(?P<recipe>.+)-step=(?P<step>\d{1,15})\.png", re.ASCII)


@dataclass(frozen=True)
class Run:
    """A run's folder as data. `steps`, `images` and `seconds` are its axes; `profiles` the last list over t of each key, with its step;
    `samples` the pictures of each recipe with their steps; `modified` when a number last came, in seconds since 1970. `choices` is
    the word of each group, `typed` the words of its command line by key; `running` whether a training is at work, None where that cannot be
    seen; `published` the published numbers beside each key, as (value, label, words, whether they may be compared); `diagnosis` and
    `front` what diffusion.diagnose and diffusion.pareto found of it; `warnings` say what could not be read."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    profiles: dict[str, tuple[int, list[float]]] = field(default_factory=dict)
    samples: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)
    modified: float = 0.0
    running: bool | None = None
    published: dict[str, list[tuple[float, str, str, bool]]] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    front: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Reader:
    """`reader()` gives the runs below `folder`, sorted by name; a later call reads only those whose files have changed since. `warnings`
    says what could not be read.

    Raises UserError if `folder` is not a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {folder}: give the folder that holds the runs' folders, such as runs/.")
        self.known: dict[Path, tuple[list, Run | None, list[str]]] = {}

    def __call__(self) -> list[Run]:
        known = {path: entry for path in sorted(self.folder.glob("*/metrics.jsonl")) if (entry := self.entry(path))}
        self.known = known
        return [run for _, run, _ in known.values() if run]

    @property
    def warnings(self) -> list[str]:
        """What could not be read at the last call."""
        return [warning for *_, warnings in self.known.values() for warning in warnings]

    def entry(self, path: Path) -> tuple[list, Run | None, list[str]] | None:
        """The signature of a run's files, the run, and what is to be said of it; None for a run that was removed while we read."""
        name = path.parent.name
        signature: list[Any] = []
        try:
            signature = [signed(path.parent / file) for file in FILES]
            signature.append(locked(path.parent / ".lock"))
            if (old := self.known.get(path)) and old[0] == signature:
                return old
            run = read_run(path.parent)
            return signature, run, [f"{name}: {warning}." for warning in run.warnings]
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with one run, the others are shown
            why = str(error) if isinstance(error, UserError) else f"it cannot be read ({type(error).__name__}: {error!s:.200})"
            return signature, None, [f"{name} is left out: {why}."]


def signed(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file does; None if there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def read_run(folder: Path) -> Run:
    """One run; of two records of a key at the same step the later one counts."""
    columns = Columns(folder)
    lost = len(columns.passed_over)
    warnings = [f"of metrics.jsonl {lost} of the lines could not be read and are passed over"] if lost else []
    config, said = (mapping(folder / name, warnings) for name in ("config.yaml", "words.yaml"))
    choices, typed = (words_by_key(said.get(part)) for part in ("choices", "typed"))
    found = columns.series()
    return Run(
        name=folder.name,
        config=flat(config),
        choices=choices,
        typed=typed,
        steps=columns.steps(),
        images=columns.column(0),
        seconds=columns.column(1),
        series=found,
        profiles=columns.profiles,
        samples=pictures(folder / "samples"),
        modified=(folder / "metrics.jsonl").stat().st_mtime,
        running=locked(folder / ".lock"),
        published=published_beside(config, found, warnings),
        diagnosis=diagnosis_of(folder, warnings),
        front=front_of(folder, warnings),
        warnings=warnings,
    )


def published_beside(config: dict, found: dict[str, Series], warnings: list[str]) -> dict[str, list[tuple[float, str, str, bool]]]:
    """The published numbers beside the last of each key that has a passport; none, with a warning, where the run names what are none."""
    try:
        published = Published.of(config.get("published"), config)
    except UserError as error:
        warnings.append(f"its published numbers are not shown, because {str(error).rstrip('.')}")
        return {}
    beside = {key: published.beside(key, s.passports[-1]) for key, s in found.items() if s.passports[-1]}
    return {key: [(c.result.value, c.result.label, str(c), c.comparable) for c in shown] for key, shown in beside.items() if shown}


def mapping(path: Path, warnings: list[str]) -> dict:
    """What a file of YAML holds; empty where it is missing or, with a warning, where it cannot be read."""
    try:
        found = parsed(content(path, path.parent, SETTINGS).decode(), path.name)
        if isinstance(found, dict):
            return found
        warnings.append(f"{path.name} holds no settings")
    except FileNotFoundError:
        pass
    except (UserError, OSError, ValueError) as error:
        warnings.append(f"its settings are not shown, because {str(error).rstrip('.?')}")
    return {}


def words_by_key(said: Any) -> dict[str, str]:
    """Words by key, as text."""
    return {str(key): str(word) for key, word in said.items()} if isinstance(said, dict) else {}


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
            case int() if abs(value) >= EXACT:  # whose digits may take forever to write
                found[key] = "a huge number"
            case bool() | int() | float() | str() | None:
                found[key] = value
            case _:  # a date, say
                found[key] = str(value)
    return found


def pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The sample grids of each recipe, by step; hidden files are pictures being written. A link or anything else that is not a file of this
    folder is no picture."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")) if within(folder, folder.parent) else ():
        if (match := PICTURE.fullmatch(path.name)) and path.is_file() and not path.is_symlink():
            found.setdefault(match["recipe"], []).append((int(match["step"]), path))
    return {recipe: sorted(grids) for recipe, grids in found.items()}
