"""The rows of a table: what was measured, read from lines of JSON, as plain values, each with the words that tell it from the others."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion.published import NOTHING, Published, scale_of

FLOOR = "the data set itself"


def read_cells(path: Path) -> list[dict]:
    """The lines of `path` that are cells, in order; none if there is no file. A last line that is incomplete is left out, and what is no
    line of ours."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict) and {"cell", "way", "passport", "words"} <= line.keys()]


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
