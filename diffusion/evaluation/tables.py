"""A table of measured cells: read from lines of JSON, laid out as rows by steps, saved as Markdown, CSV and a plot."""

import csv
import io
import json
import logging
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffusion.support.files import atomic

FLOOR = "the data set itself"
COLOURS = ("#2f6fb0", "#d9772b", "#3a923a", "#b83b3b", "#7d5fb2", "#1f9eb0")
GREY = "#b4bcc4"
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
log = logging.getLogger(__name__)


def read_cells(path: Path) -> list[dict]:
    """The lines of `path` that are cells, in order; none if there is no file. A last line that is incomplete is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if "cell" in line]


def save(path: Path, command: str) -> str:
    """Write PATH.md, .csv and .png beside the lines in `path`, and return the Markdown. Without Matplotlib there is no plot."""
    rows = layout(read_cells(path))
    text = markdown(rows, command)
    for suffix, content in ((".md", text), (".csv", table(rows))):
        with atomic(path.with_suffix(suffix)) as temporary:
            temporary.write_text(content)
    try:
        plot(rows, path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        log.warning("No plot: %s; `pip install -e .[metrics]` brings it.", error)
    return text


def layout(lines: list[dict]) -> list[dict]:
    """A row of plain values for each line; `label` says which of the words on its command line were not the same for all;
    the grid and its steps have columns of their own."""
    measured = [line for line in lines if line["way"] != "floor"]
    keys = list(dict.fromkeys(key for line in measured for key in line["words"]))
    varying = [key for key in keys if key not in ("grid", "grid.steps") and len({line["words"].get(key) for line in measured}) > 1]
    rows = {}
    for line in lines:
        passport = line["passport"]
        words = {key.removeprefix("sampler."): line["words"][key] for key in varying if key in line["words"]}
        label = " ".join(value if key == "sampler" else f"{key}={value}" for key, value in words.items())
        grid = passport["sampler"].get("grid", {})
        for name in line.get("numbers", [line["metric"]]):  # older lines do not say them
            row = {
                "label": FLOOR if line["way"] == "floor" else label or passport["sampler"]["name"],
                "grid": grid.get("name", ""),
                "steps": grid.get("steps", 0),
                "calls": passport["nfe"],
                "metric": name,
                "value": line[name],
                "error": line.get(f"{name}/error"),
                "n": passport["n"],
                "seconds": round(line["seconds"], 2),
                "passport": passport["id"],
                "code": passport["code"],
                "higher": line.get("higher", False),  # is better
            }
            rows[tuple(row[key] for key in ("label", "grid", "steps", "metric"))] = row  # the last of its kind
    return list(rows.values())


def curves(rows: list[dict], metric: str) -> dict[tuple[str, str], dict[int, dict]]:
    """(label, grid) -> steps -> row, of one metric, in order of steps; the data set's own row is not among them."""
    found: dict = {}
    for row in sorted(rows, key=lambda row: row["steps"]):
        if row["metric"] == metric and row["label"] != FLOOR:
            found.setdefault((row["label"], row["grid"]), {})[row["steps"]] = row
    order = list(dict.fromkeys((row["label"], row["grid"]) for row in rows))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def floor(rows: list[dict], metric: str) -> float | None:
    """The distance of images drawn from the data set itself, if it was measured."""
    return next((row["value"] for row in rows if row["metric"] == metric and row["label"] == FLOOR), None)


def is_higher_better(rows: list[dict], metric: str) -> bool:
    """Whether the highest value is the best, of accuracies, and not the lowest, of distances."""
    return any(row.get("higher") for row in rows if row["metric"] == metric)


def number(value: float | None) -> str:
    """Three digits; a value that is not finite was kept as None."""
    return "not finite" if value is None else f"{value:.3g}"


def markdown(rows: list[dict], command: str) -> str:
    """A table for each metric: a row for each sampler, a column for each number of steps, the calls of the denoiser in brackets."""
    parts = [f"```\n{command}\n```\n"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = curves(rows, metric)
        steps = sorted({step for curve in found.values() for step in curve})
        first = max if is_higher_better(rows, metric) else min
        best = {s: first((c[s]["value"] for c in found.values() if s in c and c[s]["value"] is not None), default=None) for s in steps}
        parts.append(f"{metric}, and in brackets the calls of the denoiser; the best of each column in bold.")
        bottom = floor(rows, metric)
        if bottom is not None:
            parts[-1] += f" As many images drawn from {FLOOR}: {number(bottom)}."
        parts[-1] += "\n"
        lines = [["", "grid", *(f"{s} steps" for s in steps)], ["---"] * (len(steps) + 2)]
        for (label, grid), curve in found.items():
            cells = []
            for s in steps:
                text = number(curve[s]["value"]) if s in curve else ""
                bold = "**" if s in curve and curve[s]["value"] == best[s] else ""
                cells.append(f"{bold}{text}{bold} ({curve[s]['calls']})" if s in curve else "")
            lines.append([label, grid, *cells])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def table(rows: list[dict]) -> str:
    """All rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def plot(rows: list[dict], path: Path) -> None:
    """Distance against calls of the denoiser, both logarithmic where they can be; a panel for each metric, a line for each sampler, named
    where it begins.

    Of more lines than there are colours, those that no other beats with as few calls are coloured, and the rest are grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure = Figure(figsize=(9, 5.5 * max(1, len(metrics))), dpi=90, layout="constrained")
    for metric, axes in zip(metrics, figure.subplots(len(metrics), squeeze=False).flat, strict=True):
        lines = points(curves(rows, metric))
        bottom = floor(rows, metric)
        positive = all(value > 0 for line in lines.values() for _, value in line) and (bottom is None or bottom > 0)
        axes.set(xscale="log", yscale="log" if positive else "linear", xlabel="calls of the denoiser", ylabel=metric)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(which="both", alpha=0.25)
        if bottom is not None:
            axes.axhline(bottom, color="black", linewidth=1, label=FLOOR)
            axes.legend(loc="upper right", fontsize=8)
        sign = -1 if is_higher_better(rows, metric) else 1
        signed = {name: [(calls, sign * value) for calls, value in line] for name, line in lines.items()}
        front = leading(signed) if len(lines) > len(COLOURS) else list(lines)
        shades = dict(zip(front, COLOURS, strict=False))
        for name, line in sorted(lines.items(), key=lambda item: item[0] in shades):  # the coloured ones above the others
            style = {"color": shades[name], "linewidth": 1.9} if name in shades else {"color": GREY, "linewidth": 0.9}
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3.5 if name in shades else 2, **style)
        name_lines(axes, lines, shades)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def points(found: dict[tuple[str, str], dict[int, dict]]) -> dict[str, list[tuple[float, float]]]:
    """The name of each curve, with its grid where that tells it from another, -> (calls, value) in order; unless none is finite."""
    labels = [label for label, _ in found]
    lines = {
        label if labels.count(label) == 1 else f"{label}, {grid}": sorted(
            (row["calls"], row["value"]) for row in curve.values() if row["value"] is not None
        )
        for (label, grid), curve in found.items()
    }
    return {name: line for name, line in lines.items() if line}


def leading(lines: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The lines with the lowest value for some number of calls, among all values of no more calls; the most often first, as many as there
    are colours."""
    costs = sorted({calls for line in lines.values() for calls, _ in line})
    best = [min((value, name) for name, line in lines.items() for calls, value in line if calls <= cost)[1] for cost in costs]
    return sorted(dict.fromkeys(best), key=lambda name: -best.count(name))[: len(COLOURS)]


def name_lines(axes: Any, lines: dict[str, list[tuple[float, float]]], shades: dict[str, str]) -> None:
    """Write each line's name to the left of its first point, moved up or down where names would overlap."""
    axes.set_xlim(axes.get_xlim()[0] / 1.6)
    scale = axes.transScale + axes.transLimits  # from values to shares of the height
    heights = {name: scale.transform(line[0])[1] for name, line in lines.items()}
    gap = 11 / 400  # of 400 points of height, 11 for a name
    columns: dict[int, list[str]] = {}
    for name, line in lines.items():
        columns.setdefault(round(math.log(line[0][0], 1.5)), []).append(name)
    for names in columns.values():
        names.sort(key=heights.__getitem__)
        for name, place in zip(names, spread_out([heights[name] for name in names], gap), strict=True):
            x, y = lines[name][0]
            colour = shades.get(name, "#555555")
            axes.annotate(
                name,
                (x, y),
                (x / 1.05, scale.inverted().transform((0, place))[1]),
                fontsize=8,
                ha="right",
                va="center",
                color=colour,
                bbox=HALO,
                zorder=5,
                fontweight="bold" if name in shades else "normal",
            )


def spread_out(places: list[float], gap: float) -> list[float]:
    """Sorted places, moved as little as may be so that neighbours are `gap` apart: the mean of pushing all up and pushing all down."""
    up = list(accumulate(places, lambda last, place: max(place, last + gap)))
    down = list(accumulate(reversed(places), lambda last, place: min(place, last - gap)))[::-1]
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]
