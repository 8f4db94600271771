"""The front of cost and quality: of many ways to sample, those that no other beats at as low a cost, found without measuring all of them
with all images."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from diffusion.evaluation.contest import Measured, agreed_to_go_on, comparable, looks, require_alike, require_same_weights
from diffusion.evaluation.differences import from_zero, holm, over_images, shared_out
from diffusion.evaluation.tables import COLOURS, GREY, logarithmic, number
from diffusion.passport import finite
from diffusion.support.commands import as_text, made_by_command
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.support.ranks import rank_and_world

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What an image costs: calls of the network (two for each guided call of classifier-free guidance, and those of a second network),
    10^9 floating-point operations (of which a multiplication and an addition are two), and milliseconds on this machine."""

    calls: int
    gflop: float
    ms: float


UNITS = {"calls": "calls", "gflop": "GFLOP an image", "ms": "ms an image"}
AXES = UNITS | {"calls": "calls of the network for an image"}
NAMED = 3  # of those that are not told apart
TIMED = 8  # a part of the first look's images, in which an image is timed


class Sampled(Measured, Protocol):
    """A way to sample: what a contest asks of it, and what an image costs, timed with so many."""

    def cost(self, images: int) -> Cost: ...


@dataclass(frozen=True)
class Point:
    """A way to sample as it was last measured: the number, what it is without each group of images, and what an image costs, of which `at`
    is what the front is drawn against."""

    label: str
    key: str
    value: float
    without: tuple[float, ...]
    higher: bool
    n: int
    cost: Cost
    at: float
    dropped: bool = False

    @classmethod
    def of(cls, label: str, line: Mapping[str, Any], key: str, cost: Cost, unit: str) -> "Point":
        """Of a line of `diffusion.evaluate`."""
        at = getattr(cost, unit)
        return cls(label, key, line[key], tuple(line[f"{key}/without"]), bool(line.get("higher")), line["passport"]["n"], cost, at)

    def worse_than(self, other: "Point") -> float:
        """The p of the two being alike (see `over_images`); 1 if this one is not the worse."""
        change = over_images(other.value, self.value, other.without, self.without)
        return change.p if (change.value < 0) is self.higher and change.value != 0 else 1.0

    @property
    def half_width(self) -> float:
        """Of the number's interval of 95 percent."""
        return from_zero(self.value, self.without).half_width(0.05)


def best(points: Sequence[Point]) -> Point:
    """The one with the best number; of several the cheapest."""
    return min(points, key=lambda point: (-point.value if point.higher else point.value, point.at))


def rivals(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Each that is not dropped, with the best of those that cost no more."""
    left = [point for point in points if not point.dropped]
    return [(point, best([other for other in left if other.at <= point.at])) for point in left]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that none of as low a cost beats, from the cheapest on."""
    return sorted((point for point, rival in rivals(points) if rival is point), key=lambda point: point.at)


def hopeless(points: Sequence[Point], level: float) -> list[Point]:
    """Those that are told to be worse than one that costs no more: each is tested against the best of these, all together by Holm at this
    level. A way that is truly the best at its cost is dropped with at most that probability; of ways that are alike some is dropped more
    often, since the best is chosen by the same images."""
    pairs = rivals(points)
    p_values = [point.worse_than(rival) for point, rival in pairs]
    return [point for (point, _), p, at in zip(pairs, p_values, holm(p_values, level), strict=True) if p <= at]


def unpaid(points: Sequence[Point], level: float) -> dict[str, str]:
    """By label those on the front that are not told to be better than the next cheaper one there, whose label is given: all steps together
    by Holm, each p times the number of those that the dearer was chosen from (Bonferroni)."""
    leading, left = front(points), [point for point in points if not point.dropped]
    steps = list(pairwise(leading))
    p_values = [min(1.0, cheap.worse_than(dear) * sum(other.at <= dear.at for other in left)) for cheap, dear in steps]
    found = zip(steps, p_values, holm(p_values, level), strict=True)
    return {dear.label: cheap.label for (cheap, dear), p, at in found if p > at}


class Search:
    """Ways to sample, measured with more and more images; one that cannot reach the front is dropped as soon as that is told."""

    def __init__(self, ways: Sequence[Sampled], budget: int | None, alpha: float, unit: str = "calls") -> None:
        self.ways, self.budget, self.alpha, self.unit = {way.label: way for way in ways}, budget, alpha, unit
        self.points: dict[str, Point] = {}
        self.weights: dict[str, Any] = {}

    def run(self) -> None:
        """Measure, drop, and go on with the others until the budget is spent, or one is left. Raises UserError for images that are there
        already, which no calls made."""
        if given := [label for label, way in self.ways.items() if way.given]:
            raise UserError(f"{given[0]} holds images that are made, at a cost that is not known: give a run.")
        metric = next(iter(self.ways.values())).own_metric()
        times, n = looks(metric, self.budget, False), max(stage.get("n") or 0 for stage in metric.values())
        log.info("%d ways, %s images of each at the first look and up to %s", len(self.ways), f"{n:,}", f"{n * times[-1]:,}")
        for look, level in zip(times, shared_out(self.alpha, times), strict=True):
            left = [label for label in self.ways if label not in self.points or not self.points[label].dropped]
            if not agreed_to_go_on(look == 1 or len(left) > 1):
                return
            first: dict[str, dict] = {}  # line of this look, by the number
            for label in left:
                lines = self.ways[label].lines(metric, look)
                if rank_and_world()[0] == 0:
                    require_same_weights(self.weights, self.ways[label], lines)
                    first = first or comparable(lines)
                    require_alike(next(iter(first)), [first], [comparable(lines)], left[0], label)
                    key, line = next(iter(comparable(lines).items()))
                    known = self.points.get(label)
                    cost = known.cost if known else self.ways[label].cost(max(1, line["passport"]["n"] // TIMED))
                    self.points[label] = Point.of(label, line, key, cost, self.unit)
            for point in hopeless(list(self.points.values()), level):
                log.info("%s is dropped: %s, behind one that costs no more", point.label, number(point.value))
                self.points[point.label] = replace(point, dropped=True)

    def sentences(self) -> list[str]:
        """For each cost on the front the best way, its interval of 95 percent, and those that are not told apart from it."""
        points, found = list(self.points.values()), []
        more = unpaid(points, self.alpha)
        for point in front(points):
            alike = [other.label for other, rival in rivals(points) if rival is point is not other]
            others = [*alike[:NAMED], *([f"and {len(alike) - NAMED} more"] if len(alike) > NAMED else [])]
            beside = f"; not told apart from it: {', '.join(others)}" if alike else ""
            beside += f"; not told to be better than the cheaper {more[point.label]}" if point.label in more else ""
            cost = f"{number(point.at)} {UNITS[self.unit]}"
            found.append(f"The best for {cost} is {point.label}: {point.key} {number(point.value)} ± {number(point.half_width)}{beside}.")
        return found

    def as_data(self, points: Sequence[Point]) -> dict[str, Any]:
        """The front as plain data, for the dashboard."""
        said = {"key": points[0].key, "higher": points[0].higher, "unit": self.unit, "sentences": self.sentences()}
        return said | {"command": made_by_command(), "points": rows_of_ways(points)}

    def save(self, path: Path, command: str) -> None:
        """Write the table, the picture and the data beside `path`, and print the table, of the looks that there were, if any."""
        if rank_and_world()[0] or not self.points:
            return
        points = sorted(self.points.values(), key=lambda point: (point.at, point.value))
        said = [*(f"* {sentence}" for sentence in self.sentences()), "", "± is half an interval of 95 percent."]
        text = f"```\n{command}\n```\n\n" + "\n".join(said) + f"\n\n{front_table(points)}"
        written = {".md": text, ".json": json.dumps(finite(self.as_data(points)), indent=1)}
        for suffix, content in written.items():
            with atomic(path.with_suffix(suffix)) as temporary:
                temporary.write_text(content)
        print(f"{text}\nwritten: {path.with_suffix('.md')}, .png and .json")
        try:
            draw_front(points, path.with_suffix(".png"), self.unit)
        except ModuleNotFoundError as error:
            log.warning("No picture: %s; `pip install -e .[metrics]` brings it.", error)


def rows_of_ways(points: Sequence[Point]) -> list[dict[str, Any]]:
    """All points as plain data."""
    leading = front(points)
    return [
        {
            "label": point.label,
            **asdict(point.cost),
            "value": point.value,
            "half_width": point.half_width,
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


def draw_front(points: Sequence[Point], path: Path, unit: str) -> None:
    """The number against the cost, with intervals of 95 percent: the front as a line with its names, the others in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=90, layout="constrained")
    axes, leading = figure.subplots(), front(points)
    for point in points:
        colour, size = (COLOURS[0], 6.0) if point in leading else (GREY, 3.5)
        mark = "x" if point.dropped else "o"
        axes.errorbar(point.at, point.value, yerr=point.half_width, fmt=mark, capsize=2, color=colour, markersize=size)
    end = [replace(leading[-1], at=max(point.at for point in points))]  # what costs more is as good
    axes.plot(*zip(*((p.at, p.value) for p in [*leading, *end]), strict=True), drawstyle="steps-post", color=COLOURS[0], linewidth=1.5)
    for point in leading:
        axes.annotate(point.label, (point.at, point.value), (5, -12), textcoords="offset points", fontsize=8)
    dropped = "; crosses were dropped" if any(point.dropped for point in points) else ""
    axes.set(xlabel=AXES[unit], ylabel=points[0].key.partition("@")[0], title=f"intervals of 95 percent{dropped}")
    axes.title.set_fontsize(9)
    axes.grid(which="both", alpha=0.25)
    logarithmic(axes, all(point.value > 0 for point in points))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata=as_text(file=path.name))
