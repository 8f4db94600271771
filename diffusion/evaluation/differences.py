"""Whether one subject's number is better than another's: differences over the images that both were asked for, or over training seeds,
with what keeps their chance of error however often one looks and however many are compared."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

import torch
from scipy.stats import t

from diffusion.metrics.intervals import jackknife
from diffusion.support.errors import UserError

MOST = 10**9  # images or runs: nobody draws more
POWER = 0.8  # the chance to tell a difference apart, for which `needed` says how many images it takes


@dataclass(frozen=True)
class Difference:
    """A difference of two numbers, its standard error, the degrees of freedom of that error, and the part of its square that does not fall
    with more of what was drawn."""

    value: float
    error: float
    freedom: float
    lasting: float = 0.0

    @property
    def p(self) -> float:
        """The probability of a value so far from 0, to either side, if the truth is 0 (Student's t)."""
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))

    def half_width(self, level: float) -> float:
        """y of the interval value +- y that covers the truth but for a probability `level`."""
        return float(t.isf(level / 2, self.freedom)) * self.error

    def needed(self, n: int, level: float, grows: bool = False) -> int | None:
        """How many images, or runs, tell a difference of this value apart at this level with probability 0.8, where these are of n and the
        square of its error falls as 1/n, but for the lasting part; its degrees of freedom are the same (of as many groups of images), or
        `grows` with n (of runs). Both quantiles are Student's t, which the test's power is near to. None for no difference, and where no
        number is enough."""

        def enough(m: int) -> bool:
            freedom = max(1.0, self.freedom * (m / n if grows else 1))
            square = (self.error**2 - self.lasting) * n / m + self.lasting
            return bool((t.isf(level / 2, freedom) + t.isf(1 - POWER, freedom)) ** 2 * square <= self.value**2)

        found = bisect_left(range(MOST), True, lo=1, key=enough) if self.value else MOST
        return found if found < MOST else None


def over_images(first: float, other: float, without_first: Sequence[float], without_other: Sequence[float]) -> Difference:
    """other - first, of the expectations at this number of images: the delete-a-group jackknife of the difference, which leaves the same
    seeds out of both, so that what the images share is no error (see `jackknife`). Of images that share nothing it is as good.

    Raises UserError for numbers that were measured with other groups of images."""
    if len(without_first) != len(without_other):
        raise UserError(f"These were measured with {len(without_first)} and {len(without_other)} groups of images: say another name=NAME.")
    apart = torch.tensor([without_other, without_first], dtype=torch.float64)
    return Difference(other - first, float(jackknife((apart[0] - apart[1])[:, None])), len(without_first) - 1)


def from_zero(value: float, without: Sequence[float]) -> Difference:
    """A number itself, as its difference from one that is known to be 0."""
    return over_images(0.0, value, [0.0] * len(without), without)


def over_seeds(first: Sequence[float], other: Sequence[float], images: Difference) -> Difference:
    """The difference of the means of two configurations' runs, with a training seed as the unit: Welch's, each of at least two runs, to
    whose square of the error that of `images` is added, the difference of the same means over the images drawn (`over_images`). These are
    the same for all runs, so that what they do to one configuration and not to the other is seen in no spread of runs. The degrees of
    freedom are Satterthwaite's (1946)."""
    parts = [(variance(values) / len(values), len(values) - 1.0) for values in (first, other)]
    parts.append((images.error**2, images.freedom))
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / own for part, own in parts) if total else min(own for _, own in parts)
    return Difference(mean(other) - mean(first), total**0.5, freedom, images.error**2)


def holm(probabilities: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm (1979) tests each of these: the smallest of m at alpha/m, the next at alpha/(m - 1), until one is not below
    its level, which is that of all after it. With p <= level for a rejection, the probability of any false one is at most alpha."""
    levels, level, going = [0.0] * len(probabilities), 0.0, True
    for rank, i in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        level = alpha / (len(probabilities) - rank) if going else level
        levels[i], going = level, going and probabilities[i] <= level
    return levels


def shared_out(alpha: float, sizes: Sequence[int]) -> list[float]:
    """alpha for each of several looks at more and more images, in proportion to how many there are: together they are alpha, whatever is
    seen at them (Bonferroni), and the last, which sees most, has most."""
    return [alpha * size / sum(sizes) for size in sizes]
