"""A table of measured cells: read from lines of JSON, laid out as rows by steps, saved as Markdown, CSV and a plot."""

import csv
import io
import json
import logging
from pathlib import Path

from diffusion.support.files import atomic

FLOOR = "the data set itself"
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
        row = {
            "label": FLOOR if line["way"] == "floor" else label or passport["sampler"]["name"],
            "grid": grid.get("name", ""),
            "steps": grid.get("steps", 0),
            "calls": passport["nfe"],
            "metric": line["metric"],
            "value": line[line["metric"]],
            "error": line.get(f"{line['metric']}/error"),
            "n": passport["n"],
            "seconds": round(line["seconds"], 2),
            "passport": passport["id"],
            "code": passport["code"],
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


def number(value: float | None) -> str:
    """Three digits; a value that is not finite was kept as None."""
    return "not finite" if value is None else f"{value:.3g}"


def markdown(rows: list[dict], command: str) -> str:
    """A table for each metric: a row for each sampler, a column for each number of steps, the calls of the denoiser in brackets."""
    parts = [f"```\n{command}\n```\n"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = curves(rows, metric)
        steps = sorted({step for curve in found.values() for step in curve})
        best = {s: min((c[s]["value"] for c in found.values() if s in c and c[s]["value"] is not None), default=None) for s in steps}
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
    """Distance against calls of the denoiser, both logarithmic; a panel for each metric, a line for each sampler."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure = Figure(figsize=(9, 5.5 * max(1, len(metrics))), dpi=90, layout="constrained")
    for metric, axes in zip(metrics, figure.subplots(len(metrics), squeeze=False).flat, strict=True):
        for i, ((label, grid), curve) in enumerate(curves(rows, metric).items()):
            label = f"{label}, {grid}" if grid else label
            points = sorted((row["calls"], row["value"]) for row in curve.values() if row["value"] is not None)
            style = {"color": colormaps["tab10"](i % 10), "linestyle": ("-", "--", ":")[i // 10 % 3], "marker": "os^"[i // 10 % 3]}
            axes.plot(*zip(*points, strict=True), label=label, markersize=4, linewidth=1.3, **style)
        if (bottom := floor(rows, metric)) is not None:
            axes.axhline(bottom, color="black", linewidth=1, label=FLOOR)
        axes.set(xscale="log", yscale="log", xlabel="calls of the denoiser", ylabel=metric)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(which="both", alpha=0.25)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
