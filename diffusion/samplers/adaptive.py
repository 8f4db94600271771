"""The probability-flow ODE with adaptive steps, each image's its own: Runge-Kutta, and DPM-Solver."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import log_ratio, weighted_sum
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Positive, Range
from diffusion.typing import Denoise, Noise, expand

# Dormand & Prince 1980: where the stages are, what they are made of, and fifth minus fourth order for the error
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


Slope = Callable[[Tensor, Tensor, Tensor], Tensor]  # at a time [k], of the states [k, ...] of the images with these numbers [k]
TOO_SMALL = "{} takes ever smaller steps: raise sampler.rtol and sampler.atol, or mend a denoiser that is not finite."


@dataclass(frozen=True)
class Adaptive(Checked, ABC):
    """Integrates from the grid's first time to its last positive one with steps of its own, then makes one first-order move to 0, which
    gives x_0 itself. It yields two States; the grid's other times do not matter.

    Each image has its own error and step size, so that it does not depend on its batch, and one that has arrived is not computed further.
    Raises ValueError when the steps become too small to move the time."""

    rtol: Positive = 1e-5
    atol: Positive = 1e-5

    @abstractmethod
    def integrate(self, denoise: Denoise, x: Tensor, times: Tensor) -> Tensor:
        """x at the last of `times`, all of them positive, from x at the first."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        inner = times[times > 0]
        x = self.integrate(denoise, x, inner)
        estimate = denoise(x, inner[-1])
        yield State(x, estimate.x0, inner[-1])
        for s in times[len(inner) :]:
            yield State(step(x, estimate.x0, inner[-1], s, denoise.schedule), estimate.x0, s)


@dataclass(frozen=True)
class RK45(Adaptive):
    """The probability-flow ODE (SDE eq. 13) by Dormand and Prince's pair of orders 5 and 4.

    It is integrated as dz/dphi = cos(phi) eps - sin(phi) x_0, z = x/sqrt(alpha^2 + sigma^2), tan(phi) = sigma/alpha, which is finite
    at alpha = 0. A step is accepted when the error estimate, over atol + rtol |z|, has root mean square below 1; it costs 6 calls."""

    def integrate(self, denoise: Denoise, x: Tensor, times: Tensor) -> Tensor:
        schedule = denoise.schedule
        (alpha, sigma), (alpha_s, sigma_s) = schedule(times[0]), schedule(times[-1])

        def slope(phi: Tensor, z: Tensor, rows: Tensor) -> Tensor:
            t = schedule.time(-2 * phi.tan().log())
            estimate = among(denoise, rows)(z * expand(_norm(t, schedule), z), t)
            return expand(phi.cos(), z) * estimate.eps - expand(phi.sin(), z) * estimate.x0

        start, end = (log_ratio(t, schedule).exp().atan().item() for t in (times[0], times[-1]))
        return self.solve(slope, x / (alpha**2 + sigma**2).sqrt(), start, end) * (alpha_s**2 + sigma_s**2).sqrt()

    def solve(self, slope: Slope, z: Tensor, start: float, end: float) -> Tensor:
        """z at phi = end > 0 from z [b, ...] at phi = start, where dz/dphi = slope(phi, z, rows)."""
        phi, z = torch.full((len(z),), start, dtype=torch.float64, device=z.device), z.clone()
        size, first = (end - phi) / 20, slope(phi, z, torch.arange(len(z), device=z.device))
        while len(rows := (phi != end).nonzero()[:, 0]):
            before, at, left, h = z[rows], phi[rows], end - phi[rows], size[rows]
            if (h.abs() < 1e-13).any():
                raise ValueError(TOO_SMALL.format("RK45"))
            h = torch.where(h.abs() < left.abs(), h, left)
            slopes = [first[rows]]
            for node, row in zip(NODES[1:], STAGES, strict=True):
                moved = before + expand(h, z) * weighted_sum(row, slopes)
                slopes.append(slope(at + node * h, moved, rows))
            scale = self.atol + self.rtol * torch.maximum(before.abs(), moved.abs())
            error = _rms(expand(h, z) * weighted_sum(ERROR, slopes) / scale).nan_to_num(nan=torch.inf)
            good = error < 1
            phi[rows[good]] = torch.where(h == left, end, at + h)[good]
            z[rows[good]], first[rows[good]] = moved[good].to(z), slopes[-1][good].to(first)
            size[rows] = h * (0.9 * error ** (-1 / 5)).clamp(0.2, 10)
        return z


def among(denoise: Denoise, rows: Tensor) -> Callable[[Tensor, Tensor], Estimate]:
    """What to call for some rows [k] of a batch alone: a denoiser that holds the batch's condition chooses with its own `among`."""
    return denoise.among(rows) if hasattr(denoise, "among") else denoise


def _rms(x: Tensor) -> Tensor:
    """The root mean square of each sample, [b] float64."""
    return x.flatten(1).double().square().mean(1).sqrt()


def _norm(t: Tensor, schedule: Schedule) -> Tensor:
    alpha, sigma = schedule(t)
    return (alpha**2 + sigma**2).sqrt()


@dataclass(frozen=True)
class DPMAdaptive(Adaptive):
    """DPM-Solver-12 (order 2) and DPM-Solver-23 (order 3) with the difference of the two orders for the error (2206.00927, app. C).

    In y = x/alpha and lambda, a move over h with a constant eps is y - s (e^h - 1) eps, s = sigma/alpha at its end; the higher orders put
    a blend of two estimates in eps's place. With E the root mean square of the difference over max(atol, rtol |y|), the next step is
    h (1 + atan(E^(-1/order) - 1)), and a step whose factor is below 0.81 is made again (k-diffusion's sample_dpm_adaptive). A step costs
    `order` calls; the first has h = `first`. From alpha = 0 the grid's first step is made beforehand, at first order."""

    rtol: Positive = 0.05
    atol: Positive = 0.0078
    order: Annotated[int, Range(least=2, most=3)] = 3
    first: Positive = 0.05

    def integrate(self, denoise: Denoise, x: Tensor, times: Tensor) -> Tensor:
        schedule = denoise.schedule
        if len(times) == 1:
            return x
        if log_ratio(times[0], schedule).isinf():
            x, times = step(x, denoise(x, times[0]).x0, times[0], times[1], schedule), times[1:]

        def eps(value: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            t = schedule.time(2 * value)
            return among(denoise, rows)(y * expand(schedule(t)[0], y), t).eps

        start, end = (-log_ratio(t, schedule).item() for t in (times[0], times[-1]))
        return self.solve(eps, x / schedule(times[0])[0], start, end) * schedule(times[-1])[0]

    def solve(self, eps: Slope, y: Tensor, start: float, end: float) -> Tensor:
        """y at lambda = end from y [b, ...] at lambda = start, where dy/dlambda = -e^(-lambda) eps(lambda, y, rows)."""
        value, y = torch.full((len(y),), start, dtype=torch.float64, device=y.device), y.clone()
        size, before = torch.full_like(value, self.first), y.clone()
        while len(rows := (value != end).nonzero()[:, 0]):
            if (size[rows] < 1e-13).any():
                raise ValueError(TOO_SMALL.format("DPMAdaptive"))
            at, left = value[rows], end - value[rows]
            h = torch.minimum(size[rows], left)
            low, high = (self.pair_12 if self.order == 2 else self.pair_23)(lambda v, u, rows=rows: eps(v, u, rows), y[rows], at, h)
            scale = (self.rtol * torch.maximum(low.abs(), before[rows].abs())).clamp(min=self.atol)
            error = _rms((low - high) / scale)
            factor = 1 + torch.atan((error + 1e-8) ** (-1 / self.order) - 1)
            factor = torch.where(error.isfinite(), factor, 0.1)
            good = factor >= 0.81
            value[rows[good]] = torch.where(h == left, end, at + h)[good]
            y[rows[good]], before[rows[good]] = high[good].to(y), low[good].to(y)
            size[rows] *= factor
        return y

    def pair_12(self, eps: Callable, y: Tensor, value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The move over h by DPM-Solver-1 and by DPM-Solver-2 (alg. 1, r_1 = 1/2)."""
        e0 = eps(value, y)
        e1 = eps(value + h / 2, move(y, e0, value, h / 2))
        return move(y, e0, value, h), move(y, e1, value, h)

    def pair_23(self, eps: Callable, y: Tensor, value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The move over h by DPM-Solver-2 and by DPM-Solver-3 (alg. 2, r_1 = 1/3, r_2 = 2/3)."""

        def bend(h: Tensor) -> Tensor:
            return expand(1 / h - 1 / torch.expm1(h), y)

        e0 = eps(value, y)
        e1 = eps(value + h / 3, move(y, e0, value, h / 3))
        e2 = eps(value + 2 * h / 3, move(y, e0 + 2 * bend(2 * h / 3) * (e1 - e0), value, 2 * h / 3))
        return move(y, e0 + 1.5 * (e1 - e0), value, h), move(y, e0 + 1.5 * bend(h) * (e2 - e0), value, h)


def move(y: Tensor, eps: Tensor, value: Tensor, h: Tensor) -> Tensor:
    """y = x/alpha after a step h of lambda from `value`, with a constant eps (DPM-Solver-1, eq. 3.7)."""
    return y - expand((-value - h).exp() * torch.expm1(h), y) * eps
