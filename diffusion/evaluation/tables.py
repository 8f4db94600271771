"""A table of measured cells, by steps or by guidance's scale, as Markdown, CSV and a plot."""

import csv
import io
import logging
import math
from collections.abc import Collection, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffusion.evaluation.rows import FLOOR, axis, layout, read_cells
from diffusion.published import Published
from diffusion.support.commands import as_text
from diffusion.support.files import atomic

COLOURS = ("#2f6fb0", "#d9772b", "#3a923a", "#b83b3b", "#7d5fb2", "#1f9eb0")
GREY = "#b4bcc4"
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
log = logging.getLogger(__name__)


def save(path: Path, command: str, files: Collection[Path] = (), published: Mapping[str, Published] = {}) -> str:
    """Write PATH.md, .csv and .png, the table of the lines in `path`, or in `files`, and return the Markdown; `published` are the published
    numbers beside those of each run. Without Matplotlib there is no plot."""
    rows = layout([line for file in files or [path] for line in read_cells(file)], published)
    text = markdown(rows, command)
    for suffix, content in ((".md", text), (".csv", table(rows))):
        with atomic(path.with_suffix(suffix)) as temporary:
            temporary.write_text(content)
    try:
        plot(rows, path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        log.warning("No plot: %s; `pip install -e .[metrics]` brings it.", error)
    return text


def columns(rows: list[dict]) -> str:
    """What the columns of a table of these rows are: steps or scale."""
    return axis((row["steps"], row.get("scale")) for row in rows if row["label"] != FLOOR)


def curves(rows: list[dict], metric: str) -> dict[tuple[str, str], dict[float, dict]]:
    """(label, grid) -> steps or scale -> row, of one metric, in order; the data set's own row is not among them."""
    found: dict = {}
    by = columns(rows)
    for row in sorted((row for row in rows if row["label"] != FLOOR and row[by] is not None), key=lambda row: row[by]):
        if row["metric"] == metric:
            found.setdefault((row["label"], row["grid"]), {})[row[by]] = row
    order = list(dict.fromkeys((row["label"], row["grid"]) for row in rows))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def floor(rows: list[dict], metric: str) -> float | None:
    """The distance of images drawn from the data set itself, if it was measured."""
    return next((row["value"] for row in rows if row["metric"] == metric and row["label"] == FLOOR), None)


def against(rows: list[dict], metric: str) -> str:
    """What a metric's numbers are to be compared with, as a sentence; empty where it does not say."""
    real, chance = ([row[key] for row in rows if row["metric"] == metric and row.get(key) is not None] for key in ("real", "chance"))
    return f" Of real pictures: {number(real[0])}; by chance at most {number(max(chance))}." if real and chance else ""


def is_higher_better(rows: list[dict], metric: str) -> bool:
    """Whether the highest value is the best, of accuracies, and not the lowest, of distances."""
    return any(row["higher"] for row in rows if row["metric"] == metric)


def number(value: float | None) -> str:
    """Three digits; a value that is not finite was kept as None."""
    return "not finite" if value is None else f"{value:.3g}"


def markdown(rows: list[dict], command: str) -> str:
    """A table for each metric: a row for each sampler or run, a column for each number of steps or scale, the calls of the denoiser in
    brackets."""
    parts, by = [f"```\n{command}\n```\n"], columns(rows)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = curves(rows, metric)
        heads = sorted({head for curve in found.values() for head in curve})
        parts.append(
            f"{metric}, and in brackets the calls of the denoiser; the best of each {'column' if by == 'steps' else 'row'} in bold."
        )
        bottom = floor(rows, metric)
        if bottom is not None:
            parts[-1] += f" As many images drawn from {FLOOR}: {number(bottom)}."
        parts[-1] += against(rows, metric)
        parts[-1] += "\n"
        best, titles = best_of(found, by), [f"{head} steps" if by == "steps" else f"scale {head:g}" for head in heads]
        lines = [["", "grid", *titles], ["---"] * (len(heads) + 2)]
        for name, curve in found.items():
            texts = {head: f"{number(row['value'])} ({row['calls']})" for head, row in curve.items()}
            texts |= {head: f"**{number(curve[head]['value'])}** ({curve[head]['calls']})" for head in curve if (name, head) in best}
            lines.append([*name, *(texts.get(head, "") for head in heads)])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        beside = dict.fromkeys(text for row in rows if row["metric"] == metric for text in row["published"].splitlines())
        if beside:
            parts.append("Published:\n\n" + "\n".join(f"* {text}" for text in beside) + "\n")
    return "\n".join(parts)


def best_of(found: dict[tuple[str, str], dict[float, dict]], by: str) -> set[tuple[tuple[str, str], float]]:
    """(curve, steps) of the best value for each number of steps, or (curve, scale) of the best of each curve."""
    values = {(name, head): row for name, curve in found.items() for head, row in curve.items() if row["value"] is not None}
    groups: dict[Any, list] = {}
    for (name, head), row in values.items():
        groups.setdefault(head if by == "steps" else name, []).append(row["value"])
    return {
        (name, head)
        for (name, head), row in values.items()
        if row["value"] == (max if row["higher"] else min)(groups[head if by == "steps" else name])
    }


def table(rows: list[dict]) -> str:
    """All rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def plot(rows: list[dict], path: Path) -> None:
    """A panel for each metric, a line for each sampler or run: against calls of the denoiser, both logarithmic where they can be, each line
    named where it begins; or against guidance's scale.

    Of more lines than there are colours, those that no other beats with as few calls are coloured, and the rest are grey."""
    from matplotlib.figure import Figure

    metrics, by = list(dict.fromkeys(row["metric"] for row in rows)), columns(rows)
    figure = Figure(figsize=(9, 5.5 * max(1, len(metrics))), dpi=90, layout="constrained")
    for metric, axes in zip(metrics, figure.subplots(len(metrics), squeeze=False).flat, strict=True):
        lines = points(curves(rows, metric), "calls" if by == "steps" else by)
        bottom = floor(rows, metric)
        if bottom is not None:
            axes.axhline(bottom, color="black", linewidth=1, label=FLOOR)
        front = leading(lines, is_higher_better(rows, metric)) if len(lines) > len(COLOURS) else list(lines)
        shades = dict(zip(front, COLOURS, strict=False))
        for name, line in sorted(lines.items(), key=lambda item: item[0] in shades):  # the coloured ones above the others
            style = {"color": shades[name], "linewidth": 1.9} if name in shades else {"color": GREY, "linewidth": 0.9}
            label = None if by == "steps" else name
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3.5 if name in shades else 2, label=label, **style)
        axes.set(xlabel="calls of the denoiser" if by == "steps" else "guidance's scale", ylabel=metric)
        axes.grid(which="both", alpha=0.25)
        if by == "steps":
            positive = all(value > 0 for line in lines.values() for _, value in line) and (bottom is None or bottom > 0)
            if all(calls > 0 for line in lines.values() for calls, _ in line):  # none for images that were there already
                logarithmic(axes, positive)
            name_lines(axes, lines, shades)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right" if by == "steps" else "best", fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata=as_text(file=path.name))


def logarithmic(axes: Any, positive: bool) -> None:
    """Calls, and values too where they are positive, on logarithmic axes."""
    from matplotlib.ticker import LogLocator

    axes.set(xscale="log", yscale="log" if positive else "linear")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def points(found: dict[tuple[str, str], dict[float, dict]], against: str = "calls") -> dict[str, list[tuple[float, float]]]:
    """The name of each curve, with its grid where that tells it from another, -> (calls or scale, value); not if none is finite."""
    labels = [label for label, _ in found]
    lines = {
        label if labels.count(label) == 1 else f"{label}, {grid}": sorted(
            (row[against], row["value"]) for row in curve.values() if row["value"] is not None
        )
        for (label, grid), curve in found.items()
    }
    return {name: line for name, line in lines.items() if line}


def leading(lines: dict[str, list[tuple[float, float]]], higher: bool = False) -> list[str]:
    """The lines with the lowest (or highest) value for some number of calls, among all values of no more calls; the most often first, as
    many as there are colours."""
    lines = {name: [(calls, -value if higher else value) for calls, value in line] for name, line in lines.items()}
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
        columns.setdefault(round(math.log(max(1, line[0][0]), 1.5)), []).append(name)
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
