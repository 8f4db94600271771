"""Multistep samplers: one call a step, and a move made with an average of the last estimates. Each starts at first order and rises."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import Known, constant, curved, exponential, hold_eps, log_ratio, weighted_sum, weights
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Range
from diffusion.typing import Denoise, Noise

UpToFour = Annotated[int, Range(least=1, most=4)]


class Multistep(Checked, ABC):
    """The loop of a multistep sampler. A subclass has an `order`, 1 to 4, and makes the x_0 of the next move from the past estimates."""

    @property
    @abstractmethod
    def order(self) -> int:
        """How many estimates a move is made with, at most."""

    @abstractmethod
    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        """The x_0 for the move from past[0]'s time to s; `past` is newest first."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        past: deque[Known] = deque(maxlen=self.order)
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            past.appendleft((t, estimate))
            x = step(x, self.x0(past, s, denoise.schedule), t, s, denoise.schedule)
            yield State(x, estimate.x0, s)


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep: eps is the polynomial in s through the last estimates, integrated over ds (k-diffusion's sample_lms).

    The Adams-Bashforth method of variable step; DEIS calls it rho-AB (2204.13902)."""

    order: UpToFour = 4

    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        w = weights([log_ratio(t, schedule).exp() for t, _ in past], log_ratio(s, schedule).exp(), constant)
        return hold_eps(weighted_sum(w, [estimate.eps for _, estimate in past]), past[0], schedule)


@dataclass(frozen=True)
class DEIS(Multistep):
    """eps is the polynomial in log s through the last estimates, integrated over ds (DEIS eq. 14, 2204.13902; diffusers' "logrho").

    The last move, to sigma = 0, is of first order."""

    order: UpToFour = 3

    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        w = weights([log_ratio(t, schedule) for t, _ in past], log_ratio(s, schedule), exponential)
        return hold_eps(weighted_sum(w, [estimate.eps for _, estimate in past]), past[0], schedule)


@dataclass(frozen=True)
class IPNDM(Multistep):
    """eps by the Adams-Bashforth formula of equal steps, whatever the grid (PNDM's, 2202.09778, without its warm-up: DEIS's "iPNDM"):

    (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24, and (23, -16, 5)/12, (3, -1)/2, 1 while fewer estimates are known. `order` is that of the
    formula; the method is of second order at most (PNDM property 3.2), because equal steps of time are not equal steps of s."""

    order: UpToFour = 4

    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        return hold_eps(adams_bashforth([estimate.eps for _, estimate in past]), past[0], schedule)


def adams_bashforth(values: Sequence[Tensor]) -> Tensor:
    """The average over the next step of the polynomial through `values`, newest first, one step apart."""
    nodes = -torch.arange(len(values), dtype=torch.float64)
    return weighted_sum(weights(list(nodes), torch.ones((), dtype=torch.float64), constant), values)


@dataclass(frozen=True)
class PNDM(Checked):
    """Pseudo numerical methods (PNDM alg. 2, 2202.09778): `IPNDM` of order 4 after a warm-up of more than one call a step.

    The warm-up is three pseudo Runge-Kutta steps of four calls (eps = (e_1 + 2 e_2 + 2 e_3 + e_4)/6, the inner ones halfway in t), or with
    `skip_prk_steps` one of two calls (eps = (e + e')/2) and then rising order: PLMS, as Stable Diffusion runs it."""

    skip_prk_steps: bool = False

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule = denoise.schedule
        past: deque[Tensor] = deque(maxlen=4)
        warm_up = (_heun,) if self.skip_prk_steps else (_runge_kutta,) * 3
        for i, (t, s) in enumerate(pairwise(times)):
            estimate = denoise(x, t)
            past.appendleft(estimate.eps)
            if i < len(warm_up) and curved(t, s, schedule):
                eps = warm_up[i](denoise, x, (t, estimate), s)
            else:
                eps = adams_bashforth(past)
            x = step(x, hold_eps(eps, (t, estimate), schedule), t, s, schedule)
            yield State(x, estimate.x0, s)


def _heun(denoise: Denoise, x: Tensor, known: Known, s: Tensor) -> Tensor:
    t, estimate = known
    return (estimate.eps + denoise(step(x, estimate.x0, t, s, denoise.schedule), s).eps) / 2


def _runge_kutta(denoise: Denoise, x: Tensor, known: Known, s: Tensor) -> Tensor:
    slopes = [known[1].eps]
    for stop in ((known[0] + s) / 2, (known[0] + s) / 2, s):
        x0 = hold_eps(slopes[-1], known, denoise.schedule)
        slopes.append(denoise(step(x, x0, known[0], stop, denoise.schedule), stop).eps)
    return weighted_sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), slopes)


@dataclass(frozen=True)
class DPMPP2M(Multistep):
    """DPM-Solver++(2M) (2211.01095, alg. 2): x_0 is the line in lambda through the last two estimates.

    `solver` "midpoint" takes the line's value halfway (the paper, k-diffusion), "heun" its average with weight e^lambda (diffusers' name).
    First order on the last move, to sigma = 0. Raises ValueError for another word."""

    order: ClassVar[int] = 2
    solver: str = "midpoint"

    choices: ClassVar = {"midpoint": constant, "heun": exponential}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in self.choices:
            raise ValueError(f"sampler.solver={self.solver} is not one of {', '.join(self.choices)}.")

    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        w = weights([-log_ratio(t, schedule) for t, _ in past], -log_ratio(s, schedule), self.choices[self.solver])
        return weighted_sum(w, [estimate.x0 for _, estimate in past])


@dataclass(frozen=True)
class DPMPP3M(Multistep):
    """DPM-Solver++(3M): x_0 is the parabola in lambda through the last three estimates, averaged with weight e^lambda (2211.01095, eq. 9).

    diffusers and k-diffusion give the parabola's curvature half its weight, which leaves them at second order."""

    order: ClassVar[int] = 3

    def x0(self, past: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        w = weights([-log_ratio(t, schedule) for t, _ in past], -log_ratio(s, schedule), exponential)
        return weighted_sum(w, [estimate.x0 for _, estimate in past])
