"""python -m diffusion.diff A B — what changed between two runs: the words typed, the configuration, the code, the data, what they ran on,
where their numbers part, and what their passports say of it.

  python -m diffusion.diff runs/a runs/b

Two folders are read as data; nothing of them is built and nothing is written. Names and places are no difference.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from diffusion.dashboard.columns import AXES, records
from diffusion.dashboard.read import flat, mapping, words_by_key
from diffusion.evaluation.again import BAND, near
from diffusion.passport import finite
from diffusion.support.errors import UserError, one_sentence, printable
from diffusion.support.moved import brought_up

NAMES = ("name", "resume", "paths")  # what a run is called and where it lies
TIMING = ("images_per_second", "evaluation_seconds", "seconds")  # numbers that are another each time
OF_CURVE = (
    "id",
    "metric",
    "weights",
    "step",
    "code",
    "statistics",
)  # of a passport: what differs anyhow, or is told elsewhere
NEVER = "not recorded"


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder as data: `config` and `said` (the words that were typed) by dotted key, `around` what it ran on, `curves` the values
    of each number by step, `passports` the last of each number that has one, `codes` and `data` what they say of those."""

    path: str
    config: dict[str, Any]
    said: dict[str, str]
    around: dict[str, Any]
    curves: dict[str, dict[int, float | None]]
    passports: dict[str, dict[str, Any]]

    @property
    def codes(self) -> list[str]:
        """The versions of the code, in the order in which they came."""
        recorded = [self.around["code"]] if "code" in self.around else []
        return list(dict.fromkeys([*(printable(passport.get("code")) for passport in self.passports.values()), *map(printable, recorded)]))

    @property
    def data(self) -> dict[str, str]:
        """The hash of each set of real images that a number was measured against, by its name and split."""
        references = [found for passport in self.passports.values() if isinstance(found := passport.get("reference"), dict)]
        said = [{key: printable(found.get(key)) for key in ("name", "split", "n", "sha256")} for found in references]
        return {f"{one['name']} {one['split']} ({one['n']})": one["sha256"][:16] for one in said}


def trained_run(path: str) -> TrainedRun:
    """The run in this folder. Raises UserError for a folder that is none, or holds what cannot be read."""
    folder = Path(path)
    for name in ("config.yaml", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{path} is not the folder of a run: it has no {name}; give two such as runs/NAME.")
    wrong: list[str] = []
    config, words, around = (mapping(folder / name, wrong) for name in ("config.yaml", "words.yaml", "environment.yaml"))
    if wrong:
        raise UserError(f"{path}: {wrong[0]}; the run is compared with nothing.")
    config = brought_up(config, str(folder / "config.yaml"))
    curves: dict[str, dict[int, float | None]] = {}
    passports: dict[str, dict[str, Any]] = {}
    for record in whole_records(folder):
        if "cell" in record:  # measured afterwards
            continue
        values = {key: finite(value) for key, value in record.items() if isinstance(value, float | None) and key not in (*AXES, *TIMING)}
        for key, value in values.items():
            curves.setdefault(key, {})[record["step"]] = value
        if isinstance(passport := record.get("passport"), dict) and isinstance(record.get("metric"), str):
            passports[record["metric"]] = passport
    return TrainedRun(path, dotted_settings(config), words_by_key(words.get("typed")), flat(around), curves, passports)


def whole_records(folder: Path) -> Iterator[dict]:
    """The lines of a run's metrics.jsonl. Raises UserError for what no training wrote."""
    try:
        yield from records(folder, [])
    except RecursionError:
        raise UserError(f"{folder / 'metrics.jsonl'} has a line of brackets without end, which no training wrote.") from None


def dotted_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted key, without a run's name and places; a value that follows from them says how."""
    paths = config.get("paths")
    places = {str(value): f"${{paths.{key}}}" for key, value in (paths.items() if isinstance(paths, dict) else ()) if value}
    apart = {key: value for key, value in config.items() if key not in NAMES}
    return {key: unplaced(value, str(config.get("name")), places) for key, value in flat(apart).items()}


def unplaced(value: Any, name: str, places: Mapping[str, str]) -> Any:
    """A value in which a run's name and its places are said by their keys, if it is a path of them."""
    if not isinstance(value, str):
        return value
    for place in sorted(places, key=len, reverse=True):
        if value == place or value.startswith(f"{place}/"):
            value = places[place] + value.removeprefix(place)
            break
    return "/".join("${name}" if part == name else part for part in value.split("/"))


def told_apart(a: Mapping[str, Any], b: Mapping[str, Any], usual: str = "none") -> list[str]:
    """A text KEY: VALUE -> VALUE for each key whose values differ; `usual` is that of a key that one of the two lacks."""
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key, usual) != b.get(key, usual) or (key in a) != (key in b)]
    return [f"{printable(key)}: {printable(a.get(key, usual))} -> {printable(b.get(key, usual))}" for key in keys]


@dataclass(frozen=True)
class Parting:
    """A number that two runs have at the same steps: how many there are, the last one, where they first differ at all (None: nowhere), and
    by more than BAND, each with both values."""

    key: str
    steps: int
    last: int
    first: tuple[int, float | None, float | None] | None
    beyond: tuple[int, float | None, float | None] | None

    def __str__(self) -> str:
        key = printable(self.key)
        if self.first is None:
            return f"{key}: the same bit for bit at all {self.steps} steps, up to step {self.last}"
        if self.beyond is None:
            return f"{key}: part at step {self.first[0]}, {self.values(self.first)}, and nowhere by more than {BAND:.1%}"
        if self.beyond[0] == self.first[0]:
            return f"{key}: part at step {self.first[0]}, {self.values(self.first)}"
        more = f"by more than {BAND:.1%} at step {self.beyond[0]}, {self.values(self.beyond)}"
        return f"{key}: part at step {self.first[0]}, {self.values(self.first)}; {more}"

    @staticmethod
    def values(at: tuple[int, float | None, float | None]) -> str:
        """Both values, in as many digits as tell them apart."""
        for digits in (6, 9):
            texts = ["not finite" if value is None else f"{value:.{digits}g}" for value in at[1:]]
            if texts[0] != texts[1]:
                return f"{texts[0]} and {texts[1]}"
        return f"{at[1]!r} and {at[2]!r}"


def partings(a: TrainedRun, b: TrainedRun) -> list[Parting]:
    """Of each number that both have at a common step: losses first, then what else a training records, then metrics."""
    found = []
    for key in sorted(a.curves.keys() & b.curves.keys(), key=lambda key: (not key.startswith("loss"), "@" in key)):
        one, other = a.curves[key], b.curves[key]
        steps = sorted(one.keys() & other.keys())
        differ = [(step, one[step], other[step]) for step in steps if one[step] != other[step]]
        if steps:
            found.append(Parting(key, len(steps), steps[-1], next(iter(differ), None), next((d for d in differ if not near(*d[1:])), None)))
    return found


def pairs(a: TrainedRun, b: TrainedRun) -> list[tuple[str, str]]:
    """The numbers with passports of two runs: those of one name, or of one but for the number of images."""
    left = {re.sub(r"@\w+", "", name): name for name in b.passports if name not in a.passports}
    named = {name: name if name in b.passports else left.get(re.sub(r"@\w+", "", name)) for name in a.passports}
    return [(name, other) for name, other in named.items() if other]


def measured_alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What the passports of two numbers differ in, as the end of a sentence."""
    one, other = (flat({key: value for key, value in passport.items() if key not in OF_CURVE}) for passport in (a, b))
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    differ = ", ".join(f"{printable(key)} {printable(one.get(key))} and {printable(other.get(key))}" for key in keys)
    return f"{differ}; else measured alike" if differ else "measured alike"


def what_changed(a: TrainedRun, b: TrainedRun) -> Iterator[str]:
    """The lines that say what differs between two runs."""
    yield f"{a.path} -> {b.path}"
    yield from section("words typed", told_apart(without_names(a.said), without_names(b.said), "not typed"))
    yield from section("configuration", told_apart(a.config, b.config))
    yield from section(
        "code", [] if a.codes == b.codes else [f"{' and '.join(a.codes) or NEVER} -> {' and '.join(b.codes) or NEVER}"], a.codes
    )
    yield from section(
        "data measured against", told_apart(a.data, b.data, "not measured against"), [f"{key} {hash}" for key, hash in a.data.items()]
    )
    around = [{key: value for key, value in run.around.items() if key != "code"} for run in (a, b)]
    if all(around):
        yield from section("environment", told_apart(around[0], around[1]))
    else:
        yield f"environment: {NEVER} by {' and '.join(run.path for run, known in zip((a, b), around, strict=True) if not known)}"
    yield from where_numbers_part(a, b)
    together = pairs(a, b)
    for name, named in together:
        of = " and ".join(map(printable, dict.fromkeys((name, named))))
        yield f"{of}: {measured_alike(a.passports[name], b.passports[named])}"
    for run, known in zip((a, b), ({name for name, _ in together}, {named for _, named in together}), strict=True):
        if only := [name for name in run.passports if name not in known]:
            yield f"measured by {run.path} alone: {', '.join(map(printable, only))}"


def section(title: str, lines: Sequence[str], value: Sequence[str] = ()) -> Iterator[str]:
    """A title, and what differs under it, or that nothing does, and the value that both have."""
    if not lines:
        yield f"{title}: the same{', ' + ', '.join(value) if value else ''}"
        return
    yield f"{title}:"
    yield from (f"  {line}" for line in lines)


def where_numbers_part(a: TrainedRun, b: TrainedRun) -> Iterator[str]:
    """Where the numbers part, those first that part first."""
    found = partings(a, b)
    differ = [parting for parting in found if parting.first]
    if not found:
        yield "numbers: none that both have at the same step"
        return
    if not differ:
        yield f"numbers: all {len(found)} the same bit for bit up to step {max(parting.last for parting in found)}"
        return
    where = min(parting.first[0] for parting in differ if parting.first)
    yield f"numbers: they part at step {where}; {len(found) - len(differ)} of {len(found)} never do"
    wholes = {parting.key for parting in differ}
    shown = [parting for parting in differ if not {str(whole) for whole in PurePath(parting.key).parents} & wholes]
    yield from (f"  {parting}" for parting in shown)
    if terms := len(differ) - len(shown):
        yield f"  and {terms} of their terms and errors"


def without_names(said: Mapping[str, str]) -> dict[str, str]:
    """Words that were typed, but for names and places."""
    return {key: value for key, value in said.items() if key.partition(".")[0] not in NAMES}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2, metavar="RUN", help="a run's folder")
    given = parser.parse_args()
    with one_sentence(OSError):
        print("\n".join(what_changed(*map(trained_run, given.runs))))


if __name__ == "__main__":
    main()
