"""The likelihood of 8-bit images under a model, in bits per dimension: by the whole variational bound, and by the probability-flow ODE.

Both work in the model's space, where `bin_width` says how wide one of the 256 levels is, and take any denoiser, (x_t, t, cond) -> Estimate.
x_0 is clipped only if the denoiser clips it, as `Clip(denoiser)` does, which usually lowers the bound.
"""

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.objectives import PIXELS, Span, variational_term
from diffusion.samplers import RK45
from diffusion.samplers.blend import log_ratio
from diffusion.schedules import Schedule
from diffusion.schedules.base import CONTINUOUS_STEPS
from diffusion.typing import Codec, Denoise, Noise, expand, per_sample_mean


class Bound(NamedTuple):
    """The variational bound in bits per dimension: bits [b] = the sum of terms [b, T], L_0 first, and prior [b], L_T.

    fraction [T] is the mean over the images of the learned variance's fraction (0 the smaller, 1 the larger), None if it is fixed."""

    bits: Tensor
    terms: Tensor
    prior: Tensor
    fraction: Tensor | None


@torch.no_grad()
def variational_bound(
    denoiser: Denoise,
    x0: Tensor,
    cond: Tensor | None = None,
    noise: Noise = torch.randn_like,
    span: Span = PIXELS,
    fixed: str | None = None,
) -> Bound:
    """-log2 p(x_0) / D <= L_0 + L_1 + ... + L_T of images x0 [b, ...], each of the T + 1 terms evaluated (DDPM eq. 5; IDDPM eq. 4).

    The 256 levels of the images lie evenly in `span`, and `fixed` is the variance, as `variational_term` says of both.

    Every L_t has one draw of x_t ~ q(x_t | x_0), from `noise`, called T times. Raises ValueError for a schedule in continuous time."""
    schedule = denoiser.schedule
    total = schedule.num_timesteps
    if total is None:
        raise ValueError(f"The variational bound is a sum over time steps, and {type(schedule).__name__} has none; use metric=nll_ode.")
    terms, fractions = [], []
    for i in range(1, total + 1):
        t = torch.full((len(x0),), i / total, dtype=torch.float64, device=x0.device)
        alpha, sigma = (expand(value, x0) for value in schedule(t))
        x_t = alpha * x0 + sigma * noise(x0)
        estimate = denoiser(x_t, t, cond)
        terms.append(variational_term(schedule, estimate, x0, x_t, t, span, fixed))
        if estimate.frac is not None and fixed is None:
            fractions.append(estimate.frac.mean())
    bits, prior = torch.stack(terms, 1), prior_term(schedule, x0)
    return Bound(bits.sum(1) + prior, bits, prior, torch.stack(fractions) if fractions else None)


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, v I)), a mean over dimensions, in bits, [b] (DDPM eq. 5); v = alpha_1^2 + sigma_1^2, which is 1 if
    the schedule preserves variance."""
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64, device=x0.device))
    v = alpha**2 + sigma**2
    return per_sample_mean(0.5 * (((alpha * x0) ** 2 + sigma**2) / v - 1 - (sigma**2 / v).log())) / log(2)


@torch.no_grad()
def flow_log_likelihood(
    denoiser: Denoise,
    x: Tensor,
    cond: Tensor | None = None,
    noise: Noise = torch.randn_like,
    solver: RK45 = RK45(),  # noqa: B008 (frozen)
    t_min: float | None = None,
) -> Tensor:
    """log p(x) in nats, [b], of points x [b, ...], by the instantaneous change of variables along the probability-flow ODE (SDE eq. 39).

    With z = x/sqrt(alpha^2 + sigma^2) and tan(phi) = sigma/alpha, dz/dphi = f = cos(phi) eps - sin(phi) x_0 (see RK45), and

        log p(x) = log N(z(1); 0, I) + int div f dphi + D log(alpha/sqrt(alpha^2 + sigma^2)),

    from `t_min`, where x enters as alpha x, to t = 1. div f is estimated by v^T (df/dz) v with one Rademacher vector v a point, the
    signs of `noise` (Hutchinson); it is exact where df/dz is a multiple of I or D = 1. The result is the density at t_min, with noise of
    deviation sigma/alpha there; by default t_min is 1/T, the first time that a model is trained at (1/1000 in continuous time). log p has
    the error of the solver's tolerances and, through v, a random error without bias."""
    schedule, shape = denoiser.schedule, x.shape
    start = torch.tensor(t_min or 1 / (schedule.num_timesteps or CONTINUOUS_STEPS), dtype=torch.float64, device=x.device)
    end = torch.ones_like(start)
    probe = noise(x).sign()

    def slope(phi: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        """d(z, log-determinant)/dphi, [k, D + 1], of k of the points."""
        t = schedule.time(-2 * phi.tan().log())
        alpha, sigma = schedule(t)
        with torch.enable_grad():
            z = state[:, :-1].reshape(-1, *shape[1:]).detach().requires_grad_()
            estimate = denoiser(z * expand((alpha**2 + sigma**2).sqrt(), z), t, None if cond is None else cond[rows])
            f = expand(phi.cos(), z) * estimate.eps - expand(phi.sin(), z) * estimate.x0
            (product,) = torch.autograd.grad((f * probe[rows]).sum(), z)
        divergence = (product * probe[rows]).flatten(1).sum(1, keepdim=True)
        return torch.cat([f.detach().flatten(1), divergence], 1)

    first, last = (log_ratio(time, schedule).exp().atan().item() for time in (start, end))
    alpha, sigma = schedule(start)
    scale = alpha / (alpha**2 + sigma**2).sqrt()
    state = solver.solve(slope, torch.cat([(scale * x).flatten(1), x.new_zeros(len(x), 1)], 1), first, last)
    z, change = state[:, :-1], state[:, -1]
    return -0.5 * (z.square().sum(1) + z.shape[1] * log(2 * pi)) + change + z.shape[1] * scale.log()


def bin_width(codec: Codec) -> float:
    """How far apart neighbouring 8-bit levels lie in the model's space: 1/127.5 for x = u / 127.5 - 1.

    Raises ValueError for a codec without a range, such as one into latents or of float data: pixels have no density there."""
    if codec.range is None:
        raise ValueError(f"{type(codec).__name__} does not keep 8-bit levels evenly spaced, so pixels have no density in its space.")
    low, high = codec.range
    return (high - low) / 255


def dequantised(x0: Tensor, width: float, noise: Noise) -> Tensor:
    """x0 + width (u - 1/2), u uniform on [0, 1): spread evenly over its level's bin (Theis et al. 1511.01844, sec. 3.1)."""
    u = 0.5 * (1 + torch.erf(noise(x0) / 2**0.5))
    return x0 + width * (u - 0.5)


def bits_per_dimension(log_p: Tensor, dimensions: int, width: float) -> Tensor:
    """-log2(p width^D) / D, an upper bound on average for the bits of the discrete image if x was `dequantised` (Theis et al., eq. 3-6)."""
    return -log_p / (dimensions * log(2)) - log(width) / log(2)
