"""Higher-order samplers that add noise on the way: the ancestral forms of DPM-Solver, and DPM-Solver++ for the diffusion SDE.

All are written in the noise-to-signal ratio's logarithm, h = log(s_t / s_s) with s = sigma/alpha, and make their move by `step`, fed
an effective x_0. Where alpha_t = 0 or s = 0, h is infinite and the move is the first-order one.

`eta` has two meanings in this family. In the ancestral forms it is DDIM's, std = eta sigma_s sqrt(1 - e^(-2h)). In the multistep SDE
solvers it is the strength of the SDE's own noise, std = sigma_s sqrt(1 - e^(-2 eta h)). They agree at 0, the ODE, and at 1. `s_noise`
multiplies the noise, 1 in all derivations (EDM sec. 4).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.posterior import shrink, step
from diffusion.samplers.base import State
from diffusion.samplers.blend import curved
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Fraction, NonNegative, Share
from diffusion.typing import Denoise, Noise


def gap(t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """h = log((sigma_t/alpha_t) / (sigma_s/alpha_s)) for s < t, infinite where alpha_t = 0 or s = 0."""
    return (schedule.log_snr(s) - schedule.log_snr(t)) / 2


def scaled(noise: Noise, factor: float) -> Noise:
    """Noise times a factor."""
    return lambda x: factor * noise(x)


def same(z: Tensor) -> Noise:
    """The noise that is this z, drawn already."""
    return lambda _: z


@dataclass(frozen=True)
class _Ancestral(Checked):
    eta: Share = 1.0
    s_noise: NonNegative = 1.0

    def middle(self, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor | None:
        """The time half-way in log(sigma/alpha) from t to the noise level that the move goes down to before it adds its noise,
        sigma_down/alpha_s = sqrt(1 - eta^2 (1 - e^(-2h))) sigma_s/alpha_s; None where that is no time in between."""
        down = schedule.log_snr(s) - torch.log1p(-(self.eta**2) * shrink(t, s, schedule))
        middle = (schedule.log_snr(t) + down) / 2
        return schedule.time(middle) if middle.isfinite() else None


@dataclass(frozen=True)
class DPM2Ancestral(_Ancestral):
    """DPM-Solver-2 (2206.00927, eq. 4.1, r_1 = 1/2) down to sigma_down, then noise up to sigma_s (k-diffusion's sample_dpm_2_ancestral).

    x_m = x_t moved along eps(x_t, t); then all the way from x_t along eps(x_m, m): the effective x_0 is (x_t - sigma_t eps_m)/alpha_t."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule = denoise.schedule
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            x0, middle = estimate.x0, self.middle(t, s, schedule)
            if middle is not None and curved(t, s, schedule):
                alpha, sigma = schedule(t)
                x0 = (x - sigma * denoise(step(x, x0, t, middle, schedule), middle).eps) / alpha
            x = step(x, x0, t, s, schedule, self.eta, scaled(noise, self.s_noise))
            yield State(x, estimate.x0, s)


@dataclass(frozen=True)
class DPMPP2SAncestral(_Ancestral):
    """DPM-Solver++(2S) (2211.01095, alg. 1, r = 1/2) down to sigma_down, then noise up to sigma_s (k-diffusion's
    sample_dpmpp_2s_ancestral): the move is made with the x_0 estimated at the middle."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            x0, middle = estimate.x0, self.middle(t, s, denoise.schedule)
            if middle is not None:
                x0 = denoise(step(x, x0, t, middle, denoise.schedule), middle).x0
            x = step(x, x0, t, s, denoise.schedule, self.eta, scaled(noise, self.s_noise))
            yield State(x, estimate.x0, s)


@dataclass(frozen=True)
class DPMPPSDE(_Ancestral):
    """SDE-DPM-Solver++, single step (k-diffusion's sample_dpmpp_sde): x_0 extrapolated from t and from a time m, a fraction r of the way in
    log(sigma/alpha),, (1 - 1/(2r)) x_0(t) + x_0(m)/(2r); the move to m is noisy too.

    The noise of t -> s contains that of t -> m, as on one path of the SDE: z = rho z_1 + sqrt(1 - rho^2) z_2 with
    rho^2 = e^(-2 h_ms) (1 - e^(-2 h_tm)) / (1 - e^(-2 h_ts)), the correlation that two posterior moves have. (k-diffusion takes it from a
    Brownian path in sigma; independent noises would lose the second weak order.)"""

    r: Fraction = 0.5

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule, noise = denoise.schedule, scaled(noise, self.s_noise)
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            x0, z = estimate.x0, noise
            if gap(t, s, schedule).isfinite():
                middle = schedule.time(torch.lerp(schedule.log_snr(t), schedule.log_snr(s), self.r))
                z1, z2, rho = noise(x), noise(x), correlation(t, middle, s, schedule)
                at_middle = denoise(step(x, x0, t, middle, schedule, self.eta, same(z1)), middle).x0
                x0 = x0 + (at_middle - x0) / (2 * self.r)
                z = same(rho * z1 + (1 - rho**2).sqrt() * z2)
            x = step(x, x0, t, s, schedule, self.eta, z)
            yield State(x, estimate.x0, s)


def correlation(t: Tensor, m: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """Of the noise in x_m with the noise in x_s, both given x_t and x_0, s < m < t."""
    return ((1 - shrink(m, s, schedule)) * shrink(t, m, schedule) / shrink(t, s, schedule)).sqrt()


@dataclass(frozen=True)
class _MultistepSDE(Checked, ABC):
    eta: NonNegative = 1.0
    s_noise: NonNegative = 1.0

    @abstractmethod
    def extrapolate(self, h: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The effective x_0 of a move by h, from the estimates of x_0 so far, each with the h of the move made after it; the newest,
        whose move this is, first."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        past: list[tuple[Tensor, Tensor]] = []
        for t, s in pairwise(times):
            x0, h = denoise(x, t).x0, gap(t, s, denoise.schedule)
            past = [(x0, h), *past[:2]] if h.isfinite() else [(x0, h)]
            fresh = shrink(t, s, denoise.schedule)
            eta = ((1 - (1 - fresh) ** self.eta) / fresh).sqrt()  # DDIM's for this noise
            x = step(x, self.extrapolate(h, past), t, s, denoise.schedule, eta, scaled(noise, self.s_noise))
            past = past if h.isfinite() else []
            yield State(x, x0, s)


@dataclass(frozen=True)
class DPMPP2MSDE(_MultistepSDE):
    """SDE-DPM-Solver++(2M) (2211.01095, sec. 5 and app. B.2; k-diffusion's midpoint form): effective x_0 = x_0 + h/(2 h_1) (x_0 - x_0')."""

    def extrapolate(self, h: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        if len(past) < 2:
            return past[0][0]
        (now, _), (before, h1) = past[:2]
        return now + h / (2 * h1) * (now - before)


@dataclass(frozen=True)
class DPMPP3MSDE(_MultistepSDE):
    """SDE-DPM-Solver++(3M) (k-diffusion's sample_dpmpp_3m_sde; the expansion of 2211.01095, eq. 3.7, for the SDE).

    With H = (1 + eta) h, phi_1 = 1 - e^-H, phi_2 = 1 - phi_1/H, phi_3 = phi_2/H - 1/2, and d_1, d_2 the first two derivatives of x_0 in
    units of h by divided differences, effective x_0 = x_0 + (phi_2 d_1 - phi_3 d_2)/phi_1; with two estimates d_2 is left out.
    k-diffusion takes the second divided difference, half of d_2, for d_2: at eta = 0 that is a second-order method, this one third."""

    def extrapolate(self, h: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        if len(past) < 2:
            return past[0][0]
        (now, _), (before, h1), *older = past
        total = (1 + self.eta) * h
        phi1 = -torch.expm1(-total)
        phi2 = 1 - phi1 / total
        slope = (now - before) * (h / h1)
        if not older:
            return now + phi2 / phi1 * slope
        long_ago, h2 = older[0]
        bend = (slope - (before - long_ago) * (h / h2)) * (h / (h1 + h2))
        d1, d2 = slope + bend * (h1 / h), 2 * bend
        return now + (phi2 * d1 - (phi2 / total - 0.5) * d2) / phi1
