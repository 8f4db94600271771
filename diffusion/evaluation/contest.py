"""Several subjects, each compared with the first: measured by the same metrics over the same seeds, more and more of them, until all are
told apart or the budget is spent."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import torch

from diffusion.evaluation.differences import Difference, holm, over_images, over_seeds, shared_out
from diffusion.evaluation.tables import COLOURS, GREY, number
from diffusion.support.commands import as_text
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.support.ranks import rank_and_world, sum_over_ranks

ALIKE = ("metric", "n", "quantisation", "extractor", "reference", "settings", "code")  # in the passports of numbers that can be compared
MOST = 10_000_000  # images of a metric
log = logging.getLogger(__name__)


class Measured(Protocol):
    """What a contest asks of a subject."""

    @property
    def label(self) -> str: ...

    @property
    def given(self) -> bool: ...

    @property
    def weights_of(self) -> str: ...

    def own_metric(self) -> dict[str, Any]: ...

    def lines(self, metric: Mapping[str, Any], times: int) -> list[dict]: ...


@dataclass(frozen=True)
class Verdict:
    """A number `key` of the first subject and of another, each of n images: their difference, and the level that it was tested at."""

    first: str
    other: str
    key: str
    values: tuple[float, float]
    difference: Difference
    level: float
    n: int
    higher: bool  # is better
    runs: int = 1  # of each, where training seeds are the unit

    @property
    def told(self) -> bool:
        """Whether they are told apart."""
        return self.difference.p <= self.level

    @property
    def better(self) -> str:
        """The better of the two, by the difference as it is."""
        return self.other if (self.difference.value > 0) is self.higher else self.first

    def __str__(self) -> str:
        of = f"{self.runs} runs of each" if self.runs > 1 else f"{self.n:,} images of each"
        width = number(self.difference.half_width(self.level))
        if self.told:
            return f"{self.better} is better by {number(abs(self.difference.value))} ± {width} ({of})"
        needed = self.difference.needed(self.runs if self.runs > 1 else self.n, self.level, self.runs > 1)
        more = f"; about {float(f'{needed:.2g}'):,.0f} would do" if needed else ""
        return f"not told apart, {number(self.difference.value)} ± {width} ({of}{more})"


class Contest:
    """`groups` of subjects, each of one subject, or of several runs of one configuration, whose training seeds are then the unit.

    The probability that any verdict is false is at most `alpha`. It is shared out among the looks, and at each Holm's procedure has what is
    not told apart yet: of m that are truly alike, none told apart before, each is tested at m-th parts of the look's share at most. A
    subject that is told apart by all metrics is drawn no further."""

    def __init__(self, groups: Sequence[Sequence[Measured]], budget: int | None, alpha: float, doubt: str = "") -> None:
        self.groups, self.budget, self.alpha, self.doubt = groups, budget, alpha, doubt
        self.over_runs = len(groups[0]) > 1
        self.verdicts: dict[tuple[int, str], Verdict] = {}  # by the group's place and the number's stem
        self.weights: dict[str, Any] = {}

    def run(self) -> None:
        """Measure, look, and go on with those that are not told apart. Raises UserError for numbers that cannot be compared."""
        metric = self.groups[0][0].own_metric()
        times = looks(metric, self.budget, self.over_runs or any(one.given for group in self.groups for one in group))
        for look, level in zip(times, shared_out(self.alpha, times), strict=True):
            left = [g for g in range(1, len(self.groups)) if not self.done(g)]
            if not agreed_to_go_on(bool(left)):
                return
            lines = {g: [one.lines(metric, look) for one in self.groups[g]] for g in [0, *left]}
            if rank_and_world()[0] == 0:
                for g, of_group in lines.items():
                    for one, own in zip(self.groups[g], of_group, strict=True):
                        require_same_weights(self.weights, one, own)
                self.look(lines, level)
                for verdict in self.verdicts.values():
                    log.info("%s against %s, %s: %s", verdict.other, verdict.first, verdict.key, verdict)

    def done(self, g: int) -> bool:
        """Whether a group is told apart from the first by all metrics; never before the first look."""
        own = [verdict for (place, _), verdict in self.verdicts.items() if place == g]
        return bool(own) and all(verdict.told for verdict in own)

    def look(self, lines: Mapping[int, Sequence[list[dict]]], level: float) -> None:
        """The verdicts of one look, of what is not told apart yet, at its share of alpha."""
        first = [comparable(of_one) for of_one in lines[0]]
        found: dict[tuple[int, str], tuple[Difference, list[float], list[float], dict]] = {}
        for g, others in ((g, of_group) for g, of_group in lines.items() if g):
            other = [comparable(of_one) for of_one in others]
            for key in first[0]:
                if (before := self.verdicts.get((g, stem(key)))) and before.told:
                    continue
                require_alike(key, first, other, self.groups[0][0].label, self.groups[g][0].label)
                a, b = ([one[key][key] for one in of] for of in (first, other))
                without = ([*map(mean, zip(*(one[key][f"{key}/without"] for one in of), strict=True))] for of in (first, other))
                images = over_images(mean(a), mean(b), *without)
                found[g, key] = over_seeds(a, b, images) if self.over_runs else images, a, b, first[0][key]
        levels = holm([difference.p for difference, *_ in found.values()], level)
        for ((g, key), (difference, a, b, line)), at in zip(found.items(), levels, strict=True):
            self.verdicts[g, stem(key)] = Verdict(
                self.name(0),
                self.name(g),
                key,
                (mean(a), mean(b)),
                difference,
                at,
                line["passport"]["n"],
                bool(line.get("higher")),
                min(len(a), len(b)),
            )

    def name(self, g: int) -> str:
        """A group's name: its subject's, or of several the first's, and how many."""
        group = self.groups[g]
        return group[0].label if len(group) == 1 else f"{group[0].label} and {len(group) - 1} more"

    def save(self, path: Path, command: str) -> None:
        """Write the table and the picture beside `path`, and print the table, of the looks that there were, if any."""
        if rank_and_world()[0] or not self.verdicts:
            return
        text = verdict_table(list(self.verdicts.values()), command, 1 - self.alpha, self.doubt)
        with atomic(path.with_suffix(".md")) as temporary:
            temporary.write_text(text)
        print(f"{text}\nwritten: {path.with_suffix('.md')} and .png")
        try:
            forest(list(self.verdicts.values()), path.with_suffix(".png"))
        except ModuleNotFoundError as error:
            log.warning("No picture: %s; `pip install -e .[metrics]` brings it.", error)


def looks(metric: Mapping[str, Any], budget: int | None, fixed: bool) -> list[int]:
    """How many times the metrics' images there are at each look: twice as many as at the one before, and in the end what the budget allows,
    or 8 times. One look where no more are drawn. Raises UserError for a budget below the first look."""
    first = max((stage.get("n") or 0 for stage in metric.values()), default=0)
    if budget is not None and budget < first:
        smaller = f", or metric.n={budget}" if budget > 1 else ""
        raise UserError(f"--budget {budget} is less than the {first} images of the first look: say more{smaller}.")
    if budget is not None and budget > MOST:
        raise UserError(f"--budget {budget} is more than {MOST:,} images, beyond which nothing is measured.")
    most = 8 if budget is None else budget // max(first, 1)
    return [1] if fixed or not first else [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def stem(key: str) -> str:
    """A number's name without its n: fd-digits of fd-digits@2k."""
    return re.sub(r"@\w+", "", key)


def agreed_to_go_on(left: bool) -> bool:
    """The first rank's word on every rank: it alone has looked."""
    return bool(sum_over_ranks(torch.tensor(int(left and rank_and_world()[0] == 0))))


def comparable(lines: Sequence[dict]) -> dict[str, dict]:
    """The line of each number that can be compared: of those that have groups of images. Raises UserError if there is none, or one is not
    finite."""
    found = {key: line for line in lines for key in line["numbers"] if f"{key}/without" in line}
    if not found:
        raise UserError("There is no number with groups of images here: say metric.groups=10, or another name=NAME than that of before.")
    for key, line in found.items():
        if not all(isinstance(value, int | float) for value in (line[key], *(line[f"{key}/without"] or [None]))):
            raise UserError(f"{key} is not a finite number in all groups of images, and is compared with nothing.")
    return found


def require_same_weights(known: dict[str, Any], one: Measured, lines: Sequence[dict]) -> None:
    """Raises UserError for lines of other weights than the `known` ones of this subject, which are kept there at first."""
    for line in lines:
        found = line["passport"].get("weights")
        if known.setdefault(one.weights_of, found) != found:
            raise UserError(f"{one.label} has other weights than when it was first measured here: is it in training? Name a checkpoint.")


def require_alike(key: str, first: Sequence[dict], other: Sequence[dict], *names: str) -> None:
    """Raises UserError unless these numbers were measured alike, of different images."""
    passports = []
    for name, of_one in ((name, of_one) for name, of in zip(names, (first, other), strict=True) for of_one in of):
        if key not in of_one:
            raise UserError(
                f"{name} has no {key}, which {names[0]} has: say the same metrics and as many images, as metric=fid metric.n=5000."
            )
        passports.append(of_one[key]["passport"])
    for field in ALIKE:
        for passport in passports:
            if (a := passports[0].get(field)) != (b := passport.get(field)):
                remedy = "; another name=NAME measures both again" if field == "code" else ""
                raise UserError(f"{key} of {names[0]} and of {names[1]} were not measured alike: their {field} are {a} and {b}{remedy}.")


def verdict_table(verdicts: Sequence[Verdict], command: str, confidence: float, doubt: str = "") -> str:
    """The verdicts as a table for each metric; `doubt` is a sentence of what they do not say."""
    parts = [
        f"```\n{command}\n```\n",
        f"With probability {confidence:g} no two are told apart here that are alike.{doubt and f' {doubt}'}\n",
    ]
    for key in dict.fromkeys(stem(verdict.key) for verdict in verdicts):
        own = [verdict for verdict in verdicts if stem(verdict.key) == key]
        rows = [["", "its number", own[0].first, "its difference"], ["---"] * 4]
        rows += [[verdict.other, *map(number, reversed(verdict.values)), str(verdict)] for verdict in own]
        parts.append(f"{key}, of which the {'highest' if own[0].higher else 'lowest'} is the best\n")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(parts)


def forest(verdicts: Sequence[Verdict], path: Path) -> None:
    """A panel for each metric: each subject's difference to the first, and its interval; grey where they are not told apart."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(stem(verdict.key) for verdict in verdicts))
    height = 1.2 * len(keys) + 0.35 * len(verdicts)
    figure = Figure(figsize=(9, height), dpi=90, layout="constrained")
    for key, axes in zip(keys, figure.subplots(len(keys), squeeze=False).flat, strict=True):
        own = [verdict for verdict in verdicts if stem(verdict.key) == key]
        for row, verdict in enumerate(own):
            colour = COLOURS[0] if verdict.told else GREY
            width = verdict.difference.half_width(verdict.level)
            axes.errorbar(verdict.difference.value, row, xerr=width, fmt="o", color=colour, capsize=3)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(yticks=range(len(own)), yticklabels=[verdict.other for verdict in own], ylim=(len(own) - 0.5, -0.5))
        better = "right" if own[0].higher else "left"
        axes.set_xlabel(f"{key} less that of {own[0].first}: better to the {better}")
        axes.grid(axis="x", alpha=0.25)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata=as_text(file=path.name))
