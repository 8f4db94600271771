"""Where a run's distance comes from: the same number of images as exact as possible in all but one thing more at each step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.evaluation.contest import comparable, require_alike
from diffusion.evaluation.differences import Difference, from_zero, holm, over_images
from diffusion.evaluation.tables import number
from diffusion.support.build import locate
from diffusion.support.errors import UserError

INFINITY = "infinity"
FRECHET = "diffusion.metrics.FrechetDistance"
Lines = list[dict]


@dataclass(frozen=True)
class Stage:
    """A subject that has one thing more of the run than the one before: what that is, which part of the distance it brings, and how its
    lines are had."""

    what: str
    part: str
    advice: str
    measure: Callable[[], Lines]


@dataclass(frozen=True)
class Piece:
    """One row of the table: the number when this thing has come too, and what it changed."""

    stage: Stage
    key: str
    value: float
    change: Difference


def pieces(stages: Sequence[Stage], measured: Sequence[Lines]) -> dict[str, list[Piece]]:
    """For each number the parts of a run's, by the lines of each stage: the first one's value, and the change that each other brings, over
    the same images' seeds.

    Distances do not add up: these are differences of successive numbers, in the order of the stages, and in another order they would be
    others. Their sum is the last number. Raises UserError where no number stands in all of the lines."""
    lines = [comparable(of_stage) for of_stage in measured]
    keys = [key for key in lines[-1] if all(key in of_stage for of_stage in lines)]
    found: dict[str, list[Piece]] = {}
    for key in keys:
        require_alike(key, [lines[0]], lines[1:], *(stage.what for stage in (stages[0], stages[-1])))
        before: tuple[float, list[float]] | None = None
        for stage, of_stage in zip(stages, lines, strict=True):
            value, without = of_stage[key][key], of_stage[key][f"{key}/without"]
            change = from_zero(value, without) if before is None else over_images(before[0], value, before[1], without)
            found.setdefault(key, []).append(Piece(stage, key, value, change))
            before = value, without
    if not found:
        raise UserError("No metric here is of images alone: say metric=fd_digits, fid or fd_resnet56.")
    return found


def only_limits(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of a guidance that keep x_0 in its range and guide to nothing, which belong to the sampler."""
    return {name: stage for name, stage in guidance.items() if getattr(locate(stage["_target_"]), "limits", False)}


def with_infinity(metric: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, and of each Fréchet distance its extrapolation to infinitely many images."""
    more = {
        f"{name}_{INFINITY}": {**stage, "_target_": "diffusion.metrics.FrechetInfinity"}
        for name, stage in metric.items()
        if stage["_target_"] == FRECHET
    }
    return {**metric, **more}


def in_infinity(key: str) -> str:
    """A Fréchet distance's name when it is extrapolated: fd-infinity-digits@1k of fd-digits@1k, fid-infinity@50k of fid@50k."""
    word = "fid" if key.startswith("fid") else "fd"
    return key.replace(word, f"{word}-infinity", 1)


def bias(lines: Lines, key: str) -> Difference | None:
    """What a number of n images has more than one of infinitely many, where that was measured too: FID(n) - FID-infinity, over the same
    groups of images (Chong & Forsyth 1911.07023)."""
    found, far = comparable(lines), in_infinity(key)
    if far not in found:
        return None
    return over_images(found[far][far], found[key][key], found[far][f"{far}/without"], found[key][f"{key}/without"])


def said(own: Sequence[Piece], more: Difference | None) -> str:
    """One number's table, and what to work on, as Markdown."""
    key, total = own[0].key, own[-1]
    rows = [["", "the number", "change"], ["---"] * 3]
    rows += [[part.stage.what, number(part.value), f"{part.stage.part} {in_sign(part.change)}"] for part in own]
    text = f"{key}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
    if more is not None and more.value >= total.value:
        below = number(total.value - more.value)
        text += f"\nAll of it is there because the images are not infinitely many, as far as so few can tell (extrapolated: {below}).\n"
    elif more is not None:
        text += f"\nOf the run's {number(total.value)}, {in_sign(more)} is there because the images are not infinitely many.\n"
    levels = holm([part.change.p for part in own[1:]], 0.05)
    told = [part for part, level in zip(own[1:], levels, strict=True) if part.change.p <= level and part.change.value > 0]
    if not told:
        return text + "\nNothing beyond the floor is told from 0 by these images: ask for more, by metric.n.\n"
    most = max(told, key=lambda part: part.change.value)
    return text + f"\nMost beyond the floor is {most.stage.part}: {most.stage.advice}.\n"


def in_sign(change: Difference) -> str:
    """A change with the half width of its interval of 95 percent."""
    return f"{change.value:+.3g} ± {number(change.half_width(0.05))}"
