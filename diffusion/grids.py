"""Grids: which times a sampler visits. `grid(schedule) -> times` [steps + 1] float64 on the CPU, descending, ending at 0.

On a discrete schedule a step is a knot, t = (i + 1)/T for step i = 0..T-1, and the first three grids visit no other time. Time stays
on the CPU, so that a sampler's decisions about it never wait for an accelerator.

The ladders are stated in s = sigma/alpha, and their levels are turned into times by `schedule.time`. A ladder goes from sigma_max to
sigma_min, in units of s, and then to 0. By default these are the schedule's own ends, s at t = 1 and at the first knot; where alpha(1) = 0
the upper one is at the last knot before t = 1, the last with a finite ratio. A given end outside the schedule's own counts as that end.
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from math import log
from typing import Annotated

import torch
from torch import Tensor

from diffusion.schedules import Schedule
from diffusion.schedules.base import CONTINUOUS_STEPS
from diffusion.support.ranges import Checked, Few, Positive, Range, Some


def _knots(schedule: Schedule, steps: int) -> int:
    total = schedule.num_timesteps or CONTINUOUS_STEPS
    if steps > total:
        raise ValueError(f"grid.steps={steps} is more than the schedule's {total} time steps; say {total} or fewer.")
    return total


def _to_zero(times: Tensor) -> Tensor:
    return torch.cat([times, times.new_zeros(1)])


@dataclass(frozen=True)
class Leading(Checked):
    """Steps k * (T // steps) + offset (DDIM's repository, and diffusers' "leading"). It starts far from pure noise when steps are few."""

    steps: Few = 50
    offset: Some = 0

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        index = torch.arange(self.steps, dtype=torch.float64).flip(0) * (total // self.steps) + self.offset
        if index[0] >= total:
            raise ValueError(f"grid.offset={self.offset} moves some of {self.steps} steps outside the schedule's {total}.")
        return _to_zero((index + 1) / total)


@dataclass(frozen=True)
class Trailing(Checked):
    """Steps T - k T/steps - 1, rounded: it starts at pure noise (Lin et al. 2305.08891, table 2). The default."""

    steps: Few = 50

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        index = (total - torch.arange(self.steps, dtype=torch.float64) * total / self.steps).round() - 1
        return _to_zero((index + 1) / total)


@dataclass(frozen=True)
class Linspace(Checked):
    """Evenly spaced steps from T - 1 to 0, both included (IDDPM's repository); `rounded` to whole steps or fractional."""

    steps: Few = 50
    rounded: bool = True

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        # numpy's arithmetic and not torch.linspace, whose rounding error sends some ties, such as 14.5, to the other whole step
        index = torch.arange(self.steps, dtype=torch.float64).flip(0) * ((total - 1) / max(1, self.steps - 1))
        index[0] = total - 1
        return _to_zero(((index.round() if self.rounded else index) + 1) / total)


@dataclass(frozen=True)
class Quadratic(Checked):
    """Steps (T - 1) (k/(steps - 1))^2, fractional: dense near the data (DDIM app. D.2's quadratic sub-sequence, c tau^2)."""

    steps: Few = 50

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        return _to_zero(((total - 1) * torch.linspace(1, 0, self.steps, dtype=torch.float64) ** 2 + 1) / total)


@dataclass(frozen=True)
class Beta(Checked):
    """Steps (T - 1) q(1 - k/steps), fractional, q the quantile of Beta(a, b): dense at both ends (2407.12173). a = b = 1 is even.

    It is time that has this distribution in the paper; diffusers' use_beta_sigmas gives it to sigma. Needs SciPy, which comes with
    scikit-learn."""

    steps: Few = 50
    a: Positive = 0.6
    b: Positive = 0.6

    def __call__(self, schedule: Schedule) -> Tensor:
        from scipy.stats import beta

        total = _knots(schedule, self.steps)
        share = torch.from_numpy(beta.ppf(1 - torch.arange(self.steps, dtype=torch.float64).numpy() / self.steps, self.a, self.b))
        return _to_zero(((total - 1) * share + 1) / total)


def ends(schedule: Schedule) -> tuple[float, float]:
    """(s at the first knot, s at t = 1 or at the last knot before it if alpha(1) = 0): the ends of every ladder."""
    total = schedule.num_timesteps or CONTINUOUS_STEPS
    last = total - 1 if schedule.reaches_noise else total
    low, high = (-schedule.log_snr(torch.tensor([1, last], dtype=torch.float64) / total) / 2).exp().tolist()
    return low, high


@dataclass(frozen=True)
class Ladder(Checked, ABC):
    """The contract: a subclass says how s falls from sigma_max to sigma_min. Raises ValueError if there is no room between them."""

    steps: Few = 50
    _: KW_ONLY
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None

    @abstractmethod
    def levels(self, ramp: Tensor, low: float, high: float) -> Tensor:
        """s along `ramp`, which goes from 0 (s = high) to 1 (s = low)."""

    def __call__(self, schedule: Schedule) -> Tensor:
        first, last = ends(schedule)
        low, high = max(self.sigma_min or first, first), min(self.sigma_max or last, last)
        if not low < high:
            raise ValueError(
                f"grid.sigma_min={self.sigma_min} and grid.sigma_max={self.sigma_max} leave no room between {low:.4g} and {high:.4g}; "
                f"the schedule's sigma/alpha goes from {first:.4g} to {last:.4g}."
            )
        ramp = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        return _to_zero(schedule.time(-2 * self.levels(ramp, low, high).log()))


Power = Annotated[float, Range(least=0.1, most=100)]  # of a ladder's steps; beyond, they are all at one end


@dataclass(frozen=True)
class Karras(Ladder):
    """s = (s_max^(1/rho) + u (s_min^(1/rho) - s_max^(1/rho)))^rho, u = 0 .. 1 (EDM eq. 5)."""

    rho: Power = 7.0

    def levels(self, ramp: Tensor, low: float, high: float) -> Tensor:
        return torch.lerp(*_pair(high ** (1 / self.rho), low ** (1 / self.rho)), ramp) ** self.rho


@dataclass(frozen=True)
class EDM(Karras):
    """EDM's own ladder (eq. 5 and table 1): Karras's from 80 to 0.002, as far as the schedule goes up to that."""

    _: KW_ONLY
    sigma_min: Positive | None = 0.002
    sigma_max: Positive | None = 80.0


@dataclass(frozen=True)
class Polyexponential(Ladder):
    """log s = log s_min + (1 - u)^rho (log s_max - log s_min), u = 0 .. 1 (k-diffusion's get_sigmas_polyexponential)."""

    rho: Power = 1.0

    def levels(self, ramp: Tensor, low: float, high: float) -> Tensor:
        return torch.lerp(*_pair(log(low), log(high)), (1 - ramp) ** self.rho).exp()


@dataclass(frozen=True)
class LogSNR(Ladder):
    """Uniform in lambda = -log s (DPM-Solver sec. 3.4)."""

    def levels(self, ramp: Tensor, low: float, high: float) -> Tensor:
        return torch.lerp(*_pair(log(high), log(low)), ramp).exp()


@dataclass(frozen=True)
class Exponential(LogSNR):
    """s geometric from s_max to s_min (k-diffusion's get_sigmas_exponential): it is LogSNR."""


def _pair(a: float, b: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
