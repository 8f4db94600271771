"""The rows of a table: what was measured, read from lines of JSON, as plain values, each with the words that tell it from the others."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion.dashboard.columns import EXACT, NUMBER, WITHOUT
from diffusion.dashboard.files import json_again, lines_of
from diffusion.published import NOTHING, Published, scale_of
from diffusion.support.errors import UserError

FLOOR = "the data set itself"
KINDS = {"cell": dict, "way": str, "words": dict, "trained": dict, "ckpt": str, "metric": str, "passport": dict}  # of what a line says
DEPTH = 30  # of a line; ours have some 10


def read_cells(path: Path) -> list[dict]:
    """The lines of `path` that are cells, in order; none if there is no file. A last line that is incomplete is left out, and what is no
    line of ours. Raises UserError for a file that is none, leads out of its folder, or is larger than any of ours."""
    found = []
    try:
        for text in lines_of(path, path.parent) if path.exists() or path.is_symlink() else ():
            try:
                found.append(json.loads(text))
            except (ValueError, RecursionError):
                continue
    except (OSError, UserError) as error:
        raise UserError(f"{path} is not read: {error}.") from None
    return [line for line in found if is_line(line)]


def is_line(line: Any) -> bool:
    """Whether plain data, which anybody may have written, is a line of `diffusion.evaluate`: under each name that it says a number that is
    finite, or None, and a passport that says how the images were sampled."""
    if not isinstance(line, dict) or not json_again(line, DEPTH):
        return False
    whole = {"trained": {}, "ckpt": "", **line}
    if not all(isinstance(whole.get(key), kind) for key, kind in KINDS.items()) or type(whole.get("seconds")) not in (int, float):
        return False
    texts = [*whole["words"].values(), *whole["trained"].values()]
    names = line.get("numbers", [line["metric"]])  # older lines do not say them
    if not isinstance(names, list) or not all(isinstance(text, str) for text in [*texts, *names]):
        return False
    beside = [line.get(f"{name}/{word}") for name in names for word in ("error", "real", "chance")]
    groups = [group if group is None or isinstance(group, list) else [()] for group in (line.get(f"{name}{WITHOUT}") for name in names)]
    numbers = [*(line.get(name, ()) for name in names), *beside, *(number for group in groups for number in group or ())]
    return all(type(number) in NUMBER for number in numbers) and is_passport(line["passport"])


def is_passport(passport: Mapping[str, Any]) -> bool:
    """Whether a line's passport says what is shown of it."""
    guidance, texts, counts = passport.get("guidance"), ("id", "code"), ("n", "nfe")
    known = all(isinstance(passport.get(key), str) for key in texts) and all(is_count(passport.get(key)) for key in counts)
    return known and is_sampler(passport.get("sampler")) and isinstance(guidance, dict | None) and type(scale_of(guidance)) in NUMBER


def is_sampler(said: Any) -> bool:
    """Whether this is a sampler's description, with that of its grid if it has one."""
    if not isinstance(said, dict) or not isinstance(grid := said.get("grid", {}), dict):
        return False
    return isinstance(said.get("name"), str) and isinstance(grid.get("name", ""), str) and is_count(grid.get("steps", 0))


def is_count(value: Any) -> bool:
    """Whether this is a whole number from 0 on, that a float holds too."""
    return type(value) is int and 0 <= value < EXACT


def layout(lines: list[dict], beside: Mapping[str, Published] = {}) -> list[dict]:
    """A row of plain values for each line; `label` says which of the words on its command line were not the same for all, and of several
    runs those that they were trained with; the grid, its steps and guidance's scale have columns of their own. `beside` holds the
    published numbers of each `ckpt`."""
    measured = [line for line in lines if line["way"] != "floor"]
    by, trained = axis(map(place_of, measured)), words_apart(measured)
    said = [naming(line, trained) for line in measured]
    varying = [key for key in dict.fromkeys(key for words in said for key in words) if len({words.get(key) for words in said}) > 1]
    varying = [key for key in varying if key not in ("grid", "grid.steps") and not (by == "scale" and is_scale(key))]
    rows = {}
    for line in lines:
        passport, words, (steps, scale) = line["passport"], naming(line, trained), place_of(line)
        published = beside.get(line.get("ckpt", ""), NOTHING)
        chosen = {key.removeprefix("sampler."): words[key] for key in varying if key in words}
        label = " ".join(value if key == "sampler" else f"{key}={value}" for key, value in chosen.items())
        for name in line.get("numbers", [line["metric"]]):  # older lines do not say them
            row = {
                "label": FLOOR if line["way"] == "floor" else label or passport["sampler"]["name"],
                "grid": passport["sampler"].get("grid", {}).get("name", ""),
                "steps": steps,
                "scale": scale,
                "calls": passport["nfe"],
                "metric": name,
                "value": line[name],
                "error": line.get(f"{name}/error"),
                "n": passport["n"],
                "seconds": round(line["seconds"], 2),
                "passport": passport["id"],
                "code": passport["code"],
                "higher": line.get("higher", False),  # is better
                "real": line.get(f"{name}/real"),  # the same number of real pictures, and by chance, where a metric says them
                "chance": line.get(f"{name}/chance"),
                "published": "\n".join(map(str, published.beside(name, passport))) if line["way"] != "floor" else "",
            }
            rows[tuple(row[key] for key in ("label", "grid", "steps", "scale", "metric"))] = row  # the last of its kind
    return list(rows.values())


def place_of(line: Mapping[str, Any]) -> tuple[int, float | None]:
    """(steps, guidance's scale) of a line, by its passport: the scale of the outermost stage that has one, None without."""
    passport = line["passport"]
    return passport["sampler"].get("grid", {}).get("steps", 0), scale_of(passport.get("guidance"))


def axis(places: Iterable[tuple[int, float | None]]) -> str:
    """What the columns of a table are, of what lies at these (steps, scale): scale, if that alone is not the same for all; else steps."""
    found = set(places)
    steps, scales = {steps for steps, _ in found}, {scale for _, scale in found if scale is not None}
    return "scale" if len(steps) == 1 and len(scales) > 1 else "steps"


def is_scale(key: str) -> bool:
    """Whether a word sets guidance's scale."""
    return key.startswith("guidance.") and key.endswith(".scale")


def words_apart(lines: Iterable[dict]) -> list[str]:
    """The words of their training that tell the runs of these lines apart; none where they do not. A name or a place is not such a word."""
    runs = {line.get("ckpt", ""): line.get("trained", {}) for line in lines}
    keys = [key for key in dict.fromkeys(key for words in runs.values() for key in words) if key.split(".")[0] not in ("name", "paths")]
    keys = [key for key in keys if len({words.get(key) for words in runs.values()}) > 1]
    return keys if len({tuple(words.get(key) for key in keys) for words in runs.values()}) == len(runs) else []


def naming(line: Mapping[str, Any], trained: list[str]) -> dict[str, str]:
    """The words that name a line: those typed, where the words of its training that are `trained` stand in the place of its run."""
    words = {key: value for key, value in line["words"].items() if not trained or key != "ckpt"}
    return {key: line["trained"][key] for key in trained if key in line.get("trained", {})} | words
