"""Moves between noise levels: the posterior q(x_s | x_t, x_0) for s < t, and the one step that nearly every sampler makes; and how likely
a Gaussian move makes a value."""

from math import log, pi

import torch
from torch import Tensor

from diffusion.schedules import Schedule
from diffusion.schedules.base import remembered
from diffusion.typing import Noise, expand


@remembered
def shrink(t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """1 - (alpha_t sigma_s / (alpha_s sigma_t))^2, the share of new noise in going from s to t, without cancellation."""
    return -torch.expm1(schedule.log_snr(t.double()) - schedule.log_snr(s.double())).to(t.dtype)


@remembered
def both_levels(t: Tensor, s: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """(alpha, sigma, share): alpha and sigma at both times, each [2, ...], and `shrink`, all from one look at the schedule."""
    log_snr = schedule.log_snr(torch.stack([t, s]).double())
    alpha, sigma = schedule.native(log_snr)
    return alpha.to(t.dtype), sigma.to(t.dtype), -torch.expm1(log_snr[0] - log_snr[1]).to(t.dtype)


@remembered
def of_posterior(t: Tensor, s: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
    """(of x_t, of x_0, var_small, var_large): the weights and variances of `posterior`."""
    (alpha_t, alpha_s), (sigma_t, sigma_s), fresh = both_levels(t, s, schedule)
    return alpha_t * sigma_s**2 / (alpha_s * sigma_t**2), alpha_s * fresh, sigma_s**2 * fresh, sigma_t**2 * fresh


def posterior(x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_s | x_t, x_0) for s < t (DDPM eq. 6, 7, for any two times and any Gaussian path).

    With a = alpha_t/alpha_s and b2 = sigma_t^2 - a^2 sigma_s^2 (beta_t for neighbours of a variance-preserving schedule):
    mean = (a sigma_s^2 x_t + alpha_s b2 x_0) / sigma_t^2. Returns (mean, var_small = b2 sigma_s^2 / sigma_t^2, var_large = b2);
    the variances are shaped to multiply x_t."""
    of_x_t, of_x0, small, large = (expand(value, x_t) for value in of_posterior(t, s, schedule))
    return of_x_t * x_t + of_x0 * x0, small, large


@remembered
def of_step(t: Tensor, s: Tensor, schedule: Schedule, eta: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(keep, of x_0, std): the weights of `step`."""
    (alpha_t, alpha_s), (sigma_t, sigma_s), fresh = both_levels(t, s, schedule)
    keep = sigma_s / sigma_t * (1 - eta**2 * fresh).clamp(min=0).sqrt()
    return keep, alpha_s - keep * alpha_t, eta * sigma_s * fresh.sqrt()


def step(
    x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule, eta: float | Tensor = 0.0, noise: Noise = torch.randn_like
) -> Tensor:
    """One move from time t to an earlier time s given an estimate of x_0 (DDIM eq. 12, in native coordinates).

    x_s = alpha_s x_0 + keep (x_t - alpha_t x_0) + std z, with keep = sqrt(sigma_s^2 - std^2) / sigma_t and
    std = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2): eta = 0 follows the probability-flow ODE, eta = 1 draws from
    the posterior with its smaller variance. t and s are 0-d times. At s = 0 the result is x_0 and no noise is drawn."""
    keep, of_x0, std = of_step(t, s, schedule, eta)
    x_s = keep * x_t + of_x0 * x0
    return x_s + std * noise(x_t) if std > 0 else x_s


def log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, var), elementwise, in nats."""
    return -0.5 * (log(2 * pi) + log_var + (x - mean) ** 2 * (-log_var).exp())


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """log of N(mean, std) over the bin around x of one of the 256 levels between low and high, the outermost two open-ended (DDPM eq. 13,
    whose bins are 2/255 wide); elementwise, in nats."""
    half, edge = (high - low) / 510, 0.0005 * (high - low)

    def cdf(edge: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(edge / 2**0.5))

    upper, lower = ((x - mean + side * half) * (-log_std).exp() for side in (1, -1))
    upper_cdf = torch.where(x > high - edge, 1.0, cdf(upper))
    lower_cdf = torch.where(x < low + edge, 0.0, cdf(lower))
    return (upper_cdf - lower_cdf).clamp(min=1e-12).log()
