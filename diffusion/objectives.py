"""Objectives: `objective(denoiser, x0, t, eps, cond) -> {"loss": [b], and each of its terms by name: [b]}`.

x0, eps [b, ...]; t [b]; the module averages over the batch. `learned_variance` says whether the objective trains one.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Estimate
from diffusion.posterior import posterior
from diffusion.schedules import Discrete
from diffusion.typing import expand, per_sample_mean

Losses = dict[str, Tensor]


def simple(denoiser: Denoiser, estimate: Estimate, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the network's output against its target (DDPM eq. 14 where the target is eps), [b]."""
    alpha, sigma = (expand(v, x0) for v in denoiser.schedule(t))
    target = denoiser.parameterization.target
    return per_sample_mean((target(estimate.x0, estimate.eps, alpha, sigma) - target(x0, eps, alpha, sigma)) ** 2)


def noised(denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None) -> tuple[Tensor, Estimate]:
    """x_t = alpha_t x_0 + sigma_t eps, and the denoiser's estimate at it."""
    alpha, sigma = (expand(v, x0) for v in denoiser.schedule(t))
    x_t = alpha * x0 + sigma * eps
    return x_t, denoiser(x_t, t, cond)


def variational_term(schedule: Discrete, estimate: Estimate, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the variational bound (DDPM eq. 5), mean over dimensions, in bits per dimension, [b].

    For t > 1/T it is L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)), s = t - 1/T; for t = 1/T it is L_0 = -log p(x_0 | x_t) of 8-bit
    data under the discretised Gaussian (DDPM eq. 13). p has the posterior's form at the estimated x_0, and the learned variance
    exp(v log large + (1 - v) log small) (IDDPM eq. 15), or the larger one where none is learned. log small at t = 1/T, where the
    posterior's variance is 0, is replaced by its value at 2/T."""
    knot = 1 / schedule.num_timesteps
    s = ((t / knot).round() - 1) * knot
    true_mean, _, large = posterior(x_t, x0, t, s, schedule)
    mean, _, _ = posterior(x_t, estimate.x0, t, s, schedule)
    first = s < knot / 2
    _, small_second, _ = posterior(x_t, x0, t.clamp(min=2 * knot), s.clamp(min=knot), schedule)
    log_small, log_large = small_second.log(), large.log()
    log_var = log_large if estimate.frac is None else estimate.frac * log_large + (1 - estimate.frac) * log_small
    kl = 0.5 * (log_var - log_small - 1 + (log_small - log_var).exp() + (true_mean - mean) ** 2 * (-log_var).exp())
    decoder = -discretised_log_likelihood(x0, mean, 0.5 * log_var)
    return per_sample_mean(torch.where(expand(first.to(x_t), x_t) > 0, decoder, kl)) / log(2)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of N(mean, std) over the bin of width 2/255 around x, the outermost two open-ended (DDPM eq. 13); elementwise, in nats."""

    def cdf(edge: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(edge / 2**0.5))

    upper, lower = ((x - mean + side / 255) * (-log_std).exp() for side in (1, -1))
    upper_cdf = torch.where(x > 0.999, 1.0, cdf(upper))
    lower_cdf = torch.where(x < -0.999, 0.0, cdf(lower))
    return (upper_cdf - lower_cdf).clamp(min=1e-12).log()


@dataclass(frozen=True)
class Simple:
    """L_simple = E || eps - eps_theta(x_t, t, c) ||^2, a mean over dimensions (DDPM eq. 14); for another parameterization, the same
    of its own target."""

    learned_variance: ClassVar[bool] = False

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Losses:
        _, estimate = noised(denoiser, x0, t, eps, cond)
        loss = simple(denoiser, estimate, x0, t, eps)
        return {"loss": loss, "simple": loss}


@dataclass(frozen=True)
class VLB:
    """L_vlb = L_0 + sum_t L_t, estimated by T times one term, in bits per dimension (IDDPM eq. 4). Its mean is trained too."""

    learned_variance: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Losses:
        x_t, estimate = noised(denoiser, x0, t, eps, cond)
        term = variational_term(denoiser.schedule, estimate, x0, x_t, t)
        return {"loss": denoiser.schedule.num_timesteps * term, "vlb": term}


@dataclass(frozen=True)
class Hybrid:
    """L_hybrid = L_simple + weight L_vlb (IDDPM eq. 16), weight = 0.001; L_vlb is T times one term in bits per dimension.

    The bound sees the mean detached, so that it trains the variance alone. The term "vlb" is reported before both factors."""

    weight: float = 0.001

    learned_variance: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Losses:
        x_t, estimate = noised(denoiser, x0, t, eps, cond)
        mse = simple(denoiser, estimate, x0, t, eps)
        term = variational_term(denoiser.schedule, estimate._replace(x0=estimate.x0.detach()), x0, x_t, t)
        return {"loss": mse + self.weight * denoiser.schedule.num_timesteps * term, "simple": mse, "vlb": term}
