"""Single-step samplers of second order in s = sigma/alpha: Heun, EDM, DPM2. Two calls a step; one where the move is not `curved`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, sqrt
from typing import Self

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import curved, hold_eps, log_ratio
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Level, NonNegative
from diffusion.typing import Denoise, Noise


@dataclass(frozen=True)
class SecondOrder(Checked, ABC):
    """Steps in s = sigma/alpha whose slope is made of two calls, with EDM's stochasticity (alg. 2): before a step from s in [s_min, s_max],
    noise is added up to s (1 + gamma), gamma = min(s_churn/steps, sqrt 2 - 1).

    s_noise is the standard deviation of that noise, and 1 keeps the level exact; s_max = None is no upper bound. The level never passes
    that of t = 1."""

    s_churn: NonNegative = 0.0
    s_min: NonNegative = 0.0
    s_max: Level | None = None
    s_noise: NonNegative = 1.0

    def share(self, share: float) -> Self:
        """The same gamma in each step of a part of the grid."""
        return replace(self, s_churn=self.s_churn * share)

    @abstractmethod
    def slope(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, first: Estimate) -> Tensor:
        """The eps of the step t -> s from a second call, `first` being the estimate at (x, t)."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule = denoise.schedule
        for t, s in pairwise(times):
            x, t = self.churn(x, t, len(times) - 1, schedule, noise)
            first = denoise(x, t)
            x0 = first.x0
            if curved(t, s, schedule):
                x0 = hold_eps(self.slope(denoise, x, t, s, first), (t, first), schedule)
            x = step(x, x0, t, s, schedule)
            yield State(x, first.x0, s)

    def churn(self, x: Tensor, t: Tensor, steps: int, schedule: Schedule, noise: Noise) -> tuple[Tensor, Tensor]:
        """(x, t) raised to the higher noise level, or as they are where s is outside [s_min, s_max] or infinite (EDM alg. 2, lines 4-6)."""
        ratio = log_ratio(t, schedule).exp()
        if self.s_churn == 0 or ratio.isinf() or not self.s_min <= ratio <= (self.s_max or inf):
            return x, t
        gamma = min(self.s_churn / steps, sqrt(2) - 1)
        up = schedule.time(-2 * (ratio * (1 + gamma)).log())
        (alpha, _), (alpha_up, sigma_up) = schedule(t), schedule(up)
        if alpha_up == 0 or up <= t:
            return x, t
        return alpha_up / alpha * x + self.s_noise * (sigma_up**2 - (alpha_up * ratio) ** 2).clamp(min=0).sqrt() * noise(x), up


@dataclass(frozen=True)
class Heun(SecondOrder):
    """Heun's method: x/alpha += (s' - s) (eps + eps')/2, eps' the estimate where an Euler step ends (EDM alg. 1; alg. 2 with churn)."""

    def slope(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, first: Estimate) -> Tensor:
        second = denoise(step(x, first.x0, t, s, denoise.schedule), s)
        return (first.eps + second.eps) / 2


@dataclass(frozen=True)
class EDM(Heun):
    """EDM's stochastic sampler (alg. 2): Heun with the constants of table 5 for ImageNet-64. With s_churn = 0 it is alg. 1."""

    s_churn: NonNegative = 40.0
    s_min: NonNegative = 0.05
    s_max: Level | None = 50.0
    s_noise: NonNegative = 1.003


@dataclass(frozen=True)
class DPM2(SecondOrder):
    """The midpoint method in log s: x/alpha += (s' - s) eps(m), m = sqrt(s s') (k-diffusion's sample_dpm_2; DPM-Solver alg. 1)."""

    def slope(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, first: Estimate) -> Tensor:
        schedule = denoise.schedule
        middle = schedule.time(-log_ratio(t, schedule) - log_ratio(s, schedule))
        return denoise(step(x, first.x0, t, middle, schedule), middle).eps
