"""Runs as one HTML file that needs nothing from outside it: the numbers, the pictures, plotly and the script are inside."""

import base64
import json
import math
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffusion.dashboard.columns import Series
from diffusion.dashboard.files import picture_of
from diffusion.dashboard.read import Run, signed
from diffusion.support.errors import UserError

HERE = Path(__file__).parent
CURVES = 2_000_000  # numbers in the page, beyond which curves that are not metrics are thinned
PRIVATE = ("name", "resume", "paths.", "hydra.", "published.")  # keys of a configuration that say nothing about the experiment
PLACES = ("root", "cache", "folder", "name")  # last words of keys that say where something is, or what it is called


def html(data: dict[str, Any]) -> str:
    """The page that shows `data`. Raises UserError where plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("The dashboard draws with plotly, which is not installed: pip install -e .[dashboard].") from error
    script, inside = (
        "".join(map(text, ("data.js", "charts.js", "app.js"))),
        compact(data).replace("<", "\\u003c"),
    )  # no </script> in the data
    parts = {"<!--plotly-->": get_plotlyjs(), "<!--data-->": inside, "<!--script-->": script}
    page = text("template.html")
    for mark, part in parts.items():
        before, after = page.rsplit(mark, 1)  # from the end: what was put in is never searched
        page = f"{before}{part}{after}"
    return page


def text(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def compact(data: dict[str, Any]) -> str:
    """The data as JSON without spaces."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def contents(
    runs: list[Run], source: Callable[[Run, Path], str | None], folder: str = "runs", live: bool = False, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of the page, ready for JSON. `source(run, picture)` is a picture's address in the page, or None to leave it out;
    `warnings` say what is not on it."""
    passports: dict[str, int] = {}
    points = max(20, CURVES // max(1, sum(len(run.series) for run in runs)))
    configs, typed = worded(runs), list({key: None for run in runs for key in run.typed})
    keys, common = compared(configs, typed)
    return {
        "warnings": list(warnings),
        "folder": folder,
        "live": live,
        "made": time.time(),
        "thinned": points if any(len(s.at) > points for run in runs for key, s in run.series.items() if "@" not in key) else None,
        "pictures": sum(len(grids) for run in runs for grids in run.samples.values()),
        "keys": keys,
        "telling": telling(keys, configs, typed),
        "common": common,
        "runs": [run_data(run, config, keys, points, passports, source) for run, config in zip(runs, configs, strict=True)],
        "passports": [json.loads(passport) for passport in passports],
    }


def run_data(run: Run, config: dict, keys: list[str], points: int, passports: dict[str, int], source: Callable) -> dict[str, Any]:
    """One run for the page, with its values of `keys`. Keys recorded together share their positions on the axes, `at`."""
    at: dict[str, int] = {}
    return {
        "name": run.name,
        "config": {key: config[key] for key in keys if key in config},
        "words": run.choices | run.typed,
        "of": run.config.get("steps"),
        "running": run.running,
        "modified": run.modified,
        "steps": packed(array("d", run.steps)),
        "images": packed(array("d", run.images)),
        "seconds": packed(array("f", run.seconds)),
        "series": {
            key: series_data(s if "@" in key else thinned(s, points), at, passports)
            for key, s in run.series.items()
            if any(map(math.isfinite, s.values))  # or there is nothing to draw
        },
        "at": list(at),
        "profiles": {key: [step, [rounded(value) for value in values]] for key, (step, values) in run.profiles.items()},
        "samples": {
            recipe: [[step, address] for step, path in grids if (address := source(run, path))] for recipe, grids in run.samples.items()
        },
        "published": run.published,
        "diagnosis": run.diagnosis,
        "front": run.front,
        "rows": {recipe: row_labels(run.config, recipe) for recipe in run.samples},
    }


def row_labels(config: dict[str, Any], recipe: str) -> list[str]:
    """What the rows of a recipe's grids are, as the callback Samples draws them: classes, by number. None where the model has no classes,
    where they are left to chance, and in pictures of metrics."""
    classes, rows = config.get("conditions.num_classes"), config.get("callbacks.samples.rows")
    vectors = "," not in str(config.get("codec.data_shape", ","))  # [2]: points, which are drawn as a scatter
    own = recipe == "main" or any(key.startswith(f"samplers.{recipe}.") for key in config)
    if vectors or not own or config.get("conditions.frequencies") or type(classes) is not int or type(rows) is not int:
        return []
    return [str(i) for i in range(min(classes, rows, 1000))]


def series_data(series: Series, at: dict[str, int], passports: dict[str, int]) -> list:
    """[which of `at`, values, passport numbers: one for all where they are the same]."""
    positions = at.setdefault(packed(series.at), len(at))
    numbers = {id(passport): None if passport is None else numbered(passport, passports) for passport in unique(series.passports)}
    made = [numbers[id(passport)] for passport in series.passports]
    return [positions, packed(series.values), made if len(numbers) > 1 else made[0]]


def numbered(passport: dict, known: dict[str, int]) -> int:
    """The number of a passport among those of the page."""
    return known.setdefault(json.dumps(passport), len(known))


def unique(things: Iterable[Any]) -> list[Any]:
    """Each object once."""
    return list({id(thing): thing for thing in things}.values())


def thinned(series: Series, points: int) -> Series:
    """At most about `points` values, evenly chosen and including the last."""
    last, stride = len(series.at) - 1, -(-len(series.at) // points)
    kept = sorted({*range(0, last + 1, stride), last})
    if stride == 1:
        return series
    at, values, passports = ([column[i] for i in kept] for column in (series.at, series.values, series.passports))
    return Series(array("I", at), array("f", values), passports)


def packed(numbers: array) -> str:
    """Base 64 of the numbers as they lie in memory, little-endian: half of their decimals' size, and read in no time."""
    return base64.b64encode(numbers.tobytes()).decode()


def rounded(value: float) -> float | None:
    """Six digits, None for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def worded(runs: list[Run]) -> list[dict[str, Any]]:
    """The runs' configurations; where all runs recorded a group's word (schedule=cosine), it stands for the name of the class."""
    said = [{group: word for group, word in run.choices.items() if word != "custom"} for run in runs]
    shared = set.intersection(*map(set, said)) if said else set()
    return [run.config | {group: words[group] for group in shared} for run, words in zip(runs, said, strict=True)]


def compared(configs: list[dict[str, Any]], typed: Collection[str] = ()) -> tuple[list[str], dict[str, Any]]:
    """The keys that differ between the runs, and what they have in common.

    A path that nobody typed says where a run is, not what. Configurations of older runs repeat values (optimizer.lr is also
    task.optimizer.lr), so of keys with the same last word and the same values in all runs only the shortest is kept."""
    keys = {key: None for config in configs for key in config if not key.startswith(PRIVATE)}
    differing: dict[tuple, str] = {}
    common: dict[str, Any] = {}
    for key in sorted(keys, key=lambda key: (key not in typed, key.count("."), len(key))):
        column = tuple(repr(config.get(key)) for config in configs)
        if len(set(column)) == 1:
            common[key] = configs[0].get(key)
        elif key in typed or not any(map(is_path, column)):
            differing.setdefault((key.rpartition(".")[2], column), key)
    return sorted(differing.values()), common


def is_path(value: str) -> bool:
    """Whether a value, as text, is or holds a path."""
    return "/" in value


def telling(keys: list[str], configs: list[dict[str, Any]], typed: Collection[str] = ()) -> list[str]:
    """The keys that say what was compared, in order: those that were typed, then those that do not follow.

    Places and names are not among them, typed or not. What has one value for each combination of the typed ones was brought along by
    them. The others are taken groups first, and left out where the class above explains them (schedule.s where the schedules differ) or
    one before them tells the same runs apart."""

    columns = {key: [repr(config.get(key)) for config in configs] for key in keys if key.rpartition(".")[2] not in PLACES}
    columns = {key: column for key, column in columns.items() if not any(map(is_path, column))}

    def follows(key: str, above: Sequence[str]) -> bool:
        causes = list(zip(*(columns[name] for name in above), strict=True))
        return len(set(zip(causes, columns[key], strict=True))) == len(set(causes))

    def repeats(key: str, other: str) -> bool:
        return follows(key, [other]) and follows(other, [key])

    said = [key for key in typed if key in columns]
    found = list(said)

    def told(key: str) -> bool:
        parts = key.split(".")
        above = [name for i in range(1, len(parts)) if (name := ".".join(parts[:i])) in columns]
        return bool(said and follows(key, said)) or any(follows(key, [name]) for name in above) or any(repeats(key, name) for name in found)

    for key in sorted(set(columns) - set(said), key=lambda key: (key.count("."), key)):
        if not told(key):
            found.append(key)
    return found


class Pictures:
    """Sample grids as data in the page, `budget` bytes in all: the last of every run, then the first, then ever finer between."""

    def __init__(self, runs: list[Run], budget: int) -> None:
        self.chosen: set[Path] = set()
        queues = [[grids[i][1] for i in coarse_to_fine(len(grids))] for run in runs for grids in run.samples.values()]
        for path in (path for rank in zip_longest(*queues) for path in rank if path):
            budget -= (signed(path) or (0, 0))[1] * 4 // 3
            if budget < 0:
                break
            self.chosen.add(path)

    def __call__(self, run: Run, path: Path) -> str | None:
        data = picture_of(path) if path in self.chosen else None
        return "data:image/png;base64," + base64.b64encode(data).decode() if data else None


def coarse_to_fine(n: int) -> list[int]:
    """0 .. n-1 as: last, first, middle, quarters, ..."""
    order, parts = [n - 1, 0][:n], 2
    while len(order) < n:
        order += sorted({(n - 1) * i // parts for i in range(1, parts)} - set(order))
        parts *= 2
    return order
