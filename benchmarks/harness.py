"""Rows of a table of ratios: who runs, how rounds are interleaved, what is made of them.

A row has sides, this project and its peers, each of which gives a number a round (seconds for an image, GiB). In each round all sides run
one after the other, in the next in the opposite order, so that a machine that drifts slows all of them alike. A `Ratio` is of two sides'
numbers of one round; what is reported is the median over the rounds, and the range.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

OURS = "ours"


class Absent(Exception):
    """A side that cannot run here, and why, in one sentence."""


@dataclass(eq=False)
class Side:
    """Who runs: `open(side)` is a context, in which what it gives is called in each round for this side's number, and `warm` once before,
    when all sides are open. `facts` are what a side says of itself (the work of one image, threads, memory), known when it is warm or
    later. Where it is not `needed`, a row goes on without it."""

    name: str
    open: Callable[["Side"], AbstractContextManager[Callable[[], float]]]
    needed: bool = False
    warm: Callable[[], None] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """`of` over `by`: of their numbers in each round, each divided by its fact `per` first; or of the fact `fact`, which is known once.
    With no `by` it is the number of `of` itself.

    `less` is taken from the ratio, so that an overhead is (ours / bare) - 1. The goals are by device, such as ">= 2" or "< 0.02"."""

    name: str
    of: str
    by: str | None
    goals: Mapping[str, str] = field(default_factory=dict)
    per: str | None = None
    fact: str | None = None
    less: float = 0.0

    def values(self, rounds: Mapping[str, list[float]], facts: Mapping[str, Mapping[str, Any]]) -> list[float]:
        """Of each round, or the one. Raises KeyError for a side that is not there, or does not say the fact."""
        of, by = (self.numbers(side, rounds, facts) for side in (self.of, self.by))
        return [a / b - self.less for a, b in zip(of, by, strict=False)]  # Ctrl-C may leave one a round short

    def numbers(self, side: str | None, rounds: Mapping[str, list[float]], facts: Mapping[str, Mapping[str, Any]]) -> Iterable[float]:
        """A side's of each round; 1 for none."""
        if side is None:
            return repeat(1.0)
        work = facts[side][self.per] if self.per else 1.0
        return [number / work for number in ([facts[side][self.fact]] if self.fact else rounds[side])]

    def met(self, value: float, device: str) -> bool | None:
        """Whether the goal for this device is reached; None where there is none."""
        if not (goal := self.goals.get(device)):
            return None
        sign, number = goal.split()
        return {">=": value >= float(number), "<=": value <= float(number), "<": value < float(number)}[sign]


@dataclass(frozen=True)
class Row:
    """One row's name on the command line, what it measures, the unit of its numbers, its sides and the ratios of them."""

    name: str
    what: str
    unit: str
    sides: tuple[Side, ...]
    ratios: tuple[Ratio, ...]
    rounds: int | None = None  # where it is not the table's


@dataclass
class Result:
    """What came of a row: every round's raw numbers by side, facts, who was absent and why; `died` says why a row has no end."""

    name: str
    what: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    died: str | None = None
    seconds: float = 0.0


def measured(row: Row, rounds: int, device: str, result: Result) -> None:
    """Open all sides, run the rounds and compare, into `result`, which holds what there is however this ends. A side that fails and is not
    needed is taken out; what else goes wrong ends the row, and the result says why. Ctrl-C does, too, and goes on up."""
    start = time.perf_counter()
    try:
        with ExitStack() as stack:
            begun = {side: work for side in row.sides if (work := opened(side, stack, result))}
            ready = {side: work for side, work in begun.items() if warmed(side, result)}
            for number in range(row.rounds or rounds):
                for side in list(ready)[:: 1 if number % 2 == 0 else -1]:
                    if not attempted(side, ready[side], result):
                        del ready[side]
    except KeyboardInterrupt:
        result.died = "stopped"
        raise
    except Exception as error:
        result.died = sentence(error)
    finally:
        result.facts = {side.name: side.facts for side in row.sides if side.name in result.rounds}
        result.ratios = [line for ratio in row.ratios if (line := compared(ratio, result, device))]
        result.seconds = time.perf_counter() - start


def opened(side: Side, stack: ExitStack, result: Result) -> Callable[[], float] | None:
    """What runs a round of this side; None for one that is not needed and cannot run."""
    try:
        return stack.enter_context(side.open(side))
    except Exception as error:
        if side.needed:
            raise
        result.absent[side.name] = sentence(error)
        return None


def warmed(side: Side, result: Result) -> bool:
    """Whether a side is warm; one that is not needed may fail."""
    try:
        side.warm()
    except Exception as error:
        if side.needed:
            raise
        result.absent[side.name] = sentence(error)
        return False
    return True


def attempted(side: Side, work: Callable[[], float], result: Result) -> bool:
    """One round of a side; False, and its numbers are gone, if it failed and is not needed."""
    try:
        number = work()
    except Exception as error:
        if side.needed:
            raise
        result.absent[side.name] = sentence(error)
        result.rounds.pop(side.name, None)
        return False
    result.rounds.setdefault(side.name, []).append(number)
    return True


def compared(ratio: Ratio, result: Result, device: str) -> dict[str, Any] | None:
    """The ratio's median and range over the rounds as plain data, with its goal here; None where a side is not there."""
    try:
        values = ratio.values(result.rounds, result.facts)
    except KeyError:
        return None
    if not values:
        return None
    middle = statistics.median(values)
    numbers = {"median": middle, "low": min(values), "high": max(values), "rounds": values}
    return {"name": ratio.name, **numbers, "goal": ratio.goals.get(device), "met": ratio.met(middle, device)}


def sentence(error: BaseException) -> str:
    """What went wrong, by the exception's name unless it is a sentence already."""
    return str(error) if isinstance(error, Absent) else f"{type(error).__name__}: {error}".strip()


@contextmanager
def missing(package: str) -> Iterator[None]:
    """Within the context, a package that is not installed makes a side absent."""
    try:
        yield
    except ImportError as error:
        raise Absent(f"{package} is not installed ({error})") from error
