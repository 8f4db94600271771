"""The front of cost and quality: of many ways to sample, those that no other beats with as few calls of the denoiser, found without
measuring all of them with all images."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from diffusion.evaluation.contest import Measured, agreed_to_go_on, comparable, looks
from diffusion.evaluation.differences import from_zero, holm, over_images, shared_out
from diffusion.evaluation.tables import COLOURS, GREY, logarithmic, number
from diffusion.passport import finite
from diffusion.support.commands import as_text, made_by_command
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.support.ranks import rank_and_world

log = logging.getLogger(__name__)


class Sampled(Measured, Protocol):
    """A way to sample: what a contest asks of it, and the FLOPs of a call for one image."""

    def flops(self) -> float: ...


@dataclass(frozen=True)
class Point:
    """A way to sample as it was last measured: the number, what it is without each group of images, and what an image cost."""

    label: str
    key: str
    value: float
    without: tuple[float, ...]
    higher: bool
    n: int
    calls: int
    seconds: float  # an image, what the metrics took included
    flops: float = 0.0  # an image
    dropped: bool = False

    @classmethod
    def of(cls, label: str, line: Mapping[str, Any], key: str, flops: float) -> "Point":
        """Of a line of `diffusion.evaluate`."""
        passport = line["passport"]
        n, calls = passport["n"], passport["nfe"]
        without = tuple(line[f"{key}/without"])
        return cls(label, key, line[key], without, line.get("higher", False), n, calls, line["seconds"] / n, flops * calls)

    def worse_than(self, other: "Point") -> float:
        """The p of the two being alike (see `over_images`); 1 if this one is not the worse."""
        change = over_images(other.value, self.value, other.without, self.without)
        return change.p if (change.value < 0) is self.higher and change.value != 0 else 1.0

    @property
    def error(self) -> float:
        """The number's standard error."""
        return from_zero(self.value, self.without).error


def best(points: Sequence[Point]) -> Point:
    """The one with the best number; of several the cheapest."""
    return min(points, key=lambda point: (-point.value if point.higher else point.value, point.calls))


def front(points: Sequence[Point]) -> list[Point]:
    """Those that none of as few calls beats, from the cheapest on."""
    own = [p for p in points if not p.dropped and best([q for q in points if not q.dropped and q.calls <= p.calls]) is p]
    return sorted(own, key=lambda point: point.calls)


def hopeless(points: Sequence[Point], level: float) -> list[Point]:
    """Those that are told to be worse than one of as few calls: each is tested against the best of these, all together by Holm at this
    level. So the chance to drop any that is as good is about `level`, and a little more, since the best was chosen by the same images."""
    left = [p for p in points if not p.dropped]
    p_values = [p.worse_than(best([q for q in left if q.calls <= p.calls])) for p in left]
    return [point for point, p, at in zip(left, p_values, holm(p_values, level), strict=True) if p <= at]


class Search:
    """Ways to sample, measured with more and more images; one that cannot reach the front is dropped as soon as that is told."""

    def __init__(self, ways: Sequence[Sampled], budget: int | None, alpha: float) -> None:
        self.ways, self.budget, self.alpha = {way.label: way for way in ways}, budget, alpha
        self.points: dict[str, Point] = {}
        self.level = alpha  # of the last look

    def run(self) -> None:
        """Measure, drop, and go on with the others until the budget is spent, or one is left. Raises UserError for images that are there
        already, which no calls made."""
        if given := [label for label, way in self.ways.items() if way.given]:
            raise UserError(f"{given[0]} holds images that are made, at a cost that is not known: give a run.")
        metric = next(iter(self.ways.values())).own_metric()
        times = looks(metric, self.budget, False)
        for look, level in zip(times, shared_out(self.alpha, times), strict=True):
            self.level = level
            left = [label for label in self.ways if label not in self.points or not self.points[label].dropped]
            if not agreed_to_go_on(look == 1 or len(left) > 1):
                return
            for label in left:
                lines = self.ways[label].lines(metric, look)
                if rank_and_world()[0] == 0:
                    flops = self.points[label].flops / self.points[label].calls if label in self.points else self.ways[label].flops()
                    key, line = next(iter(comparable(lines).items()))
                    self.points[label] = Point.of(label, line, key, flops)
            for point in hopeless(list(self.points.values()), self.level):
                log.info("%s is dropped: %s of %d calls, behind one of no more", point.label, number(point.value), point.calls)
                self.points[point.label] = replace(point, dropped=True)

    def sentences(self) -> list[str]:
        """For each number of calls on the front the best way, its interval, and those that are not told apart from it."""
        found = []
        for point in front(list(self.points.values())):
            among = [q for q in self.points.values() if q.calls <= point.calls and not q.dropped and q is not point]
            p_values = [q.worse_than(point) for q in among]
            alike = [q.label for q, p, at in zip(among, p_values, holm(p_values, self.level), strict=True) if p > at]
            width = from_zero(point.value, point.without).half_width(self.level)
            beside = f"; not told apart from it: {', '.join(alike)}" if alike else ""
            found.append(f"The best for {point.calls} calls is {point.label}: {point.key} {number(point.value)} ± {number(width)}{beside}.")
        return found

    def as_data(self, points: Sequence[Point]) -> dict[str, Any]:
        """The front as plain data, for the dashboard."""
        said = {"key": points[0].key, "higher": points[0].higher, "sentences": self.sentences()}
        return said | {"command": made_by_command(), "points": rows_of_ways(points)}

    def save(self, path: Path, command: str) -> None:
        """Write the table, the picture and the data beside `path`, and print the table."""
        if rank_and_world()[0]:
            return
        points = sorted(self.points.values(), key=lambda point: (point.calls, point.value))
        text = f"```\n{command}\n```\n\n" + "\n".join(f"* {sentence}" for sentence in self.sentences()) + f"\n\n{front_table(points)}"
        written = {".md": text, ".json": json.dumps(finite(self.as_data(points)), indent=1)}
        for suffix, content in written.items():
            with atomic(path.with_suffix(suffix)) as temporary:
                temporary.write_text(content)
        print(text)
        try:
            draw_front(points, path.with_suffix(".png"))
        except ModuleNotFoundError as error:
            log.warning("No picture: %s; `pip install -e .[metrics]` brings it.", error)


def rows_of_ways(points: Sequence[Point]) -> list[dict[str, Any]]:
    """All points as plain data."""
    leading = front(points)
    return [
        {
            "label": point.label,
            "calls": point.calls,
            "gflop": point.flops / 1e9,  # an image, as are the milliseconds
            "ms": 1e3 * point.seconds,
            "value": point.value,
            "error": point.error,
            "images": point.n,
            "state": "dropped" if point.dropped else "on the front" if point in leading else "behind, not told apart",
        }
        for point in points
    ]


def front_table(points: Sequence[Point]) -> str:
    """All points as Markdown."""
    rows = [["", "calls", "GFLOP an image", "ms an image", "number", "images", ""], ["---"] * 7]
    for one in rows_of_ways(points):
        cost = [str(one["calls"]), number(one["gflop"]), number(one["ms"])]
        rows.append([one["label"], *cost, number(one["value"]), f"{one['images']:,}", one["state"]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def draw_front(points: Sequence[Point], path: Path) -> None:
    """The number against the calls: the front as a line with its names and standard errors, the others in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=90, layout="constrained")
    axes, leading = figure.subplots(), front(points)
    for point in points:
        colour, size = (COLOURS[0], 6.0) if point in leading else (GREY, 3.5)
        mark = "x" if point.dropped else "o"
        axes.errorbar(point.calls, point.value, yerr=point.error, fmt=mark, capsize=2, color=colour, markersize=size)
    end = [replace(leading[-1], calls=max(point.calls for point in points))]  # more calls are as good
    axes.plot(*zip(*((p.calls, p.value) for p in [*leading, *end]), strict=True), drawstyle="steps-post", color=COLOURS[0], linewidth=1.5)
    for point in leading:
        axes.annotate(point.label, (point.calls, point.value), (5, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="calls of the denoiser", ylabel=points[0].key.partition("@")[0])
    axes.grid(which="both", alpha=0.25)
    logarithmic(axes, all(point.value > 0 for point in points))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata=as_text(file=path.name))
