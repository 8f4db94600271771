"""What was made twice: how far images and numbers lie apart, and what else was not the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from diffusion.support.errors import printable

BAND = 1e-3  # a share of the larger one: numbers that are closer agree but for rounding
LEVELS, SHARE = 2, 0.05  # of pictures: so many of 256 levels at most, at this share of the pixels
AROUND = ("code", "device", "environment")  # of what says how a thing was made: a difference in these allows rounding


@dataclass(frozen=True)
class Closeness:
    """Whether two things are the same bit for bit, whether they are within the bands, and by how much they differ, in words."""

    same: bool
    near: bool
    text: str


def near(a: float | None, b: float | None, band: float = BAND) -> bool:
    """Whether two numbers differ by no more than this share of the larger one; None is one that is not finite, and near None alone."""
    if a is None or b is None:
        return a is b
    return isfinite(a) and isfinite(b) and abs(a - b) <= band * max(abs(a), abs(b))


def images_apart(before: np.ndarray, again: np.ndarray) -> Closeness:
    """Of two arrays of images uint8 [..., h, w, c], or of floats, whose band is BAND of their range."""
    if before.shape != again.shape or before.dtype != again.dtype:
        kinds = [f"{array.dtype} {list(array.shape)}" for array in (before, again)]
        return Closeness(False, False, f"they are {kinds[0]} and {kinds[1]}")
    if np.array_equal(before, again, equal_nan=before.dtype.kind == "f"):
        return Closeness(True, True, "the same bit for bit")
    apart = np.abs(before.astype(np.float64) - again.astype(np.float64))
    if before.dtype == np.uint8:
        share, most = float((apart.max(-1) > 0).mean()), int(apart.max())
        text = f"{share:.2%} of the pixels differ, by {most} of 256 levels at most"
        return Closeness(False, most <= LEVELS and share <= SHARE, text)
    span = float(np.nanmax(before) - np.nanmin(before))
    farthest = float(apart.max())
    return Closeness(False, farthest <= BAND * span, f"they differ by {farthest:.3g} at most, of a range of {span:.3g}")


def numbers_apart(before: float | None, again: float | None) -> Closeness:
    """Of two numbers."""
    if before == again:
        return Closeness(True, True, f"{before!r} again")
    share = "" if before is None or again is None else f", {abs(again - before) / max(abs(before), abs(again)):.2g} of the larger one"
    return Closeness(False, near(before, again), f"{before!r} and now {again!r}{share}")


def said_otherwise(before: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What differs around two things by what is said of each: code, kind of device, environment; a text for each. Weights that one does not
    say are told too."""
    found = []
    for key in AROUND:
        was, now = before.get(key), again.get(key)
        if was is None:
            found.append(f"its {key} is not recorded")
        elif isinstance(was, Mapping) and isinstance(now, Mapping):
            names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
            found += [f"{printable(name)} was {printable(was.get(name))} and is {printable(now.get(name))}" for name in names]
        elif was != now:
            found.append(f"{key} was {printable(was)} and is {printable(now)}")
    if before.get("weights") is None is not again.get("weights"):
        found.append("its weights are not recorded")
    return found


def verdict(before: Mapping[str, Any], again: Mapping[str, Any], close: Closeness) -> tuple[bool, str]:
    """(whether a thing was reproduced, a sentence). It was if it is the same bit for bit, or within the bands where something around it is
    not the same; and never with other weights."""
    if (was := before.get("weights")) is not None and was != (now := again.get("weights")):
        return False, f"not reproduced: the weights are not those, {printable(was)} then and {printable(now)} now; {close.text}."
    others = said_otherwise(before, again)
    around = f" ({'; '.join(others)})" if others else ""
    if close.same:
        return True, f"reproduced: {close.text}{around}."
    if close.near and others:
        return True, f"reproduced within the bands: {close.text}{around}."
    same = "" if others else ", where code, device and environment are the same"
    return False, f"not reproduced: {close.text}{same}{around}."
