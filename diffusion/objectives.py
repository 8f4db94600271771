"""Objectives: `objective(denoiser, x0, t, eps, cond) -> {"loss": [b], and each of its terms by name: [b]}`.

x0, eps [b, ...]; t [b]; the module averages over the batch. `learned_variance` says whether the objective trains one. It may have too:
`needs_steps`, which says that it is a sum over the steps of a discrete schedule, `fits(schedule)`, which raises ValueError for a schedule
that is not its own, and `derives_twice`, which says that it differentiates the network twice, as a compiled network cannot. Flow matching
(FM eq. 23) is `Simple` with the velocity parameterization on straight paths.
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.denoiser import Denoiser, Estimate
from diffusion.parameterization import Parameterization
from diffusion.posterior import discretised_log_likelihood, log_density, posterior
from diffusion.schedules import Schedule
from diffusion.schedules.base import time_steps
from diffusion.support.ranges import Checked, Few, Finite, NonNegative
from diffusion.typing import expand, per_sample_mean
from diffusion.weightings import TimeWeighting

LossTerms = dict[str, Tensor]
Span = tuple[Finite, Finite] | None  # the interval in which 256 levels lie evenly, a codec's `range`; None for data without levels
PIXELS: Span = (-1.0, 1.0)
FRACTION = {"fixed_small": 0.0, "fixed_large": 1.0}  # a fixed variance as v of IDDPM eq. 15


class Objective(Protocol):
    """The contract; see above.

    In training an objective draws nothing itself, since a sample's random numbers are those of its place in the whole step: one that needs
    more noise than eps says of how many in an attribute `noises`, and is called with as many [b, ...] after cond."""

    @property
    def learned_variance(self) -> bool:
        """Whether the objective trains a learned variance, which the denoiser then has."""

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None, /) -> LossTerms:
        """The loss and each of its terms by name, [b]."""


def simple(denoiser: Denoiser, estimate: Estimate, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the network's output against its target (DDPM eq. 14 where the target is eps), [b]."""
    alpha, sigma = (expand(v, x0) for v in denoiser.schedule(t))
    target = denoiser.parameterization.target
    return per_sample_mean((target(estimate.x0, estimate.eps, alpha, sigma) - target(x0, eps, alpha, sigma)) ** 2)


def noise_and_denoise(denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None) -> tuple[Tensor, Estimate]:
    """x_t = alpha_t x_0 + sigma_t eps, and the denoiser's estimate at it."""
    alpha, sigma = (expand(v, x0) for v in denoiser.schedule(t))
    x_t = alpha * x0 + sigma * eps
    return x_t, denoiser(x_t, t, cond)


def variational_term(
    schedule: Schedule, estimate: Estimate, x0: Tensor, x_t: Tensor, t: Tensor, span: Span = PIXELS, fixed: str | None = None
) -> Tensor:
    """One term of the variational bound (DDPM eq. 5), mean over dimensions, in bits per dimension, [b].

    For t > 1/T it is L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)), s = t - 1/T; for t = 1/T it is L_0 = -log p(x_0 | x_t) of 8-bit data
    in `span` under the discretised Gaussian (DDPM eq. 13), or of data without levels (None) under the Gaussian's density. p has the
    posterior's form at the estimated x_0, and the variance exp(v log large + (1 - v) log small) (IDDPM eq. 15): v is learned, or 0 or 1 as
    `fixed` says; where neither is, the larger. log small at t = 1/T, where the posterior's variance is 0, is replaced by its value at 2/T.

    With a fixed variance, L_t is (mean - mean_theta)^2/(2 variance) but for a constant: DDPM's weights of eps's error (eq. 12)."""
    knot = 1 / time_steps(schedule)
    s = ((t / knot).round() - 1) * knot
    true_mean, _, large = posterior(x_t, x0, t, s, schedule)
    mean, _, _ = posterior(x_t, estimate.x0, t, s, schedule)
    first = s < knot / 2
    _, small_second, _ = posterior(x_t, x0, t.clamp(min=2 * knot), s.clamp(min=knot), schedule)
    log_small, log_large = small_second.log(), large.log()
    v = FRACTION[fixed] if fixed else 1.0 if estimate.frac is None else estimate.frac
    log_var = v * log_large + (1 - v) * log_small
    kl = 0.5 * (log_var - log_small - 1 + (log_small - log_var).exp() + (true_mean - mean) ** 2 * (-log_var).exp())
    decoder = -log_density(x0, mean, log_var) if span is None else -discretised_log_likelihood(x0, mean, 0.5 * log_var, *span)
    return per_sample_mean(torch.where(expand(first.to(x_t), x_t) > 0, decoder, kl)) / log(2)


@dataclass(frozen=True)
class Simple:
    """L_simple = E || eps - eps_theta(x_t, t, c) ||^2, a mean over dimensions (DDPM eq. 14); for another parameterization, the same
    of its own target. With a `weighting`, w(t) times that; the term "simple" is reported before the weight."""

    weighting: TimeWeighting | None = None

    learned_variance: ClassVar[bool] = False

    @property
    def needs_steps(self) -> bool:
        """Whether the weights are those of time steps."""
        return self.weighting is not None and self.weighting.needs_steps

    def fits(self, schedule: Schedule) -> None:
        """Raises ValueError if the weights are not those of this schedule."""
        if self.weighting is not None:
            self.weighting.fits(schedule)

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> LossTerms:
        _, estimate = noise_and_denoise(denoiser, x0, t, eps, cond)
        loss = simple(denoiser, estimate, x0, t, eps)
        if self.weighting is None:
            return {"loss": loss, "simple": loss}
        return {"loss": self.weighting.native(denoiser.schedule, denoiser.parameterization, t).to(loss) * loss, "simple": loss}

    def untrained(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The loss at t [b] of a network that outputs 0, for x_0 of mean 0 and variance 1, [b]."""
        (alpha, sigma), one, zero = schedule(t), torch.ones_like(t), torch.zeros_like(t)
        square = parameterization.target(one, zero, alpha, sigma) ** 2 + parameterization.target(zero, one, alpha, sigma) ** 2
        return square if self.weighting is None else square * self.weighting.native(schedule, parameterization, t)


@dataclass(frozen=True)
class VLB(Checked):
    """L_vlb = L_0 + sum_t L_t, estimated by T times one term, in bits per dimension (IDDPM eq. 4). Its mean is trained too.

    `variance` is learned, or one of DDPM's: fixed_small or fixed_large (DDPM sec. 3.2 and table 2, "L, fixed isotropic Sigma"). `span`: see
    `variational_term`. Raises ValueError for another word."""

    span: Span = PIXELS
    variance: Literal["learned", "fixed_small", "fixed_large"] = "learned"

    needs_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance != "learned" and self.variance not in FRACTION:
            raise ValueError(f"objective.variance={self.variance} is not one of learned, {', '.join(FRACTION)}.")

    @property
    def learned_variance(self) -> bool:
        """Whether the variance is trained too."""
        return self.fixed_variance is None

    @property
    def fixed_variance(self) -> str | None:
        """The variance where it is not trained."""
        return None if self.variance == "learned" else self.variance

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> LossTerms:
        x_t, estimate = noise_and_denoise(denoiser, x0, t, eps, cond)
        term = variational_term(denoiser.schedule, estimate, x0, x_t, t, self.span, self.fixed_variance)
        return {"loss": time_steps(denoiser.schedule) * term, "vlb": term}


@dataclass(frozen=True)
class Hybrid(Checked):
    """L_hybrid = L_simple + weight L_vlb (IDDPM eq. 16), weight = 0.001; L_vlb is T times one term in bits per dimension.

    The bound sees the mean detached, so that it trains the variance alone. The term "vlb" is reported before both factors. `span`: see
    `variational_term`."""

    weight: NonNegative = 0.001
    span: Span = PIXELS

    learned_variance: ClassVar[bool] = True
    needs_steps: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> LossTerms:
        x_t, estimate = noise_and_denoise(denoiser, x0, t, eps, cond)
        mse = simple(denoiser, estimate, x0, t, eps)
        term = variational_term(denoiser.schedule, estimate._replace(x0=estimate.x0.detach()), x0, x_t, t, self.span)
        return {"loss": mse + self.weight * time_steps(denoiser.schedule) * term, "simple": mse, "vlb": term}


@dataclass(frozen=True)
class DSM(Checked):
    """Denoising score matching, 1/2 lambda(sigma) || s_theta(x_t) + (x_t - alpha x_0)/sigma^2 ||^2, a mean over dimensions (NCSN eq. 5).

    lambda(sigma) = sigma^power; 2, the paper's, makes all levels count alike."""

    power: Finite = 2.0

    learned_variance: ClassVar[bool] = False

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> LossTerms:
        _, estimate = noise_and_denoise(denoiser, x0, t, eps, cond)
        sigma = denoiser.schedule(t)[1].to(x0)
        # with s = -eps_hat/sigma and (x_t - alpha x_0)/sigma^2 = eps/sigma, both over 1/sigma: finite at the smallest levels
        loss = 0.5 * sigma ** (self.power - 2) * per_sample_mean((estimate.eps - eps) ** 2)
        return {"loss": loss, "dsm": loss}


def score_at(denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, with a gradient; the score -eps_hat/sigma at it [b, ...]; lambda = sigma^2 [b]), such that the score can be derived twice."""
    alpha, sigma = (expand(v, x0) for v in denoiser.schedule(t))
    x_t = (alpha * x0 + sigma * eps).detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
        return x_t, -denoiser(x_t, t, cond).eps / sigma, sigma.flatten() ** 2


def times_jacobian(v: Tensor, score: Tensor, x_t: Tensor) -> Tensor:
    """v^T (d score / d x), [b, ...]."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.grad(score, x_t, v, create_graph=True)[0]


@dataclass(frozen=True)
class SSM(Checked):
    """Sliced score matching at each noise level, lambda(sigma) E_v[v^T (d s/dx) v + 1/2 (v^T s)^2], over the number of dimensions,
    lambda = sigma^2 (1905.07088, eq. 8). With `reduced`, its lower-variance form with 1/2 ||s||^2 (eq. 9; SSM-VR).

    The entries of v are +-1 (Rademacher; any v with E[v v^T] = I will do): the derivative's diagonal, which is about -1/sigma^2 where
    the noise is large, then adds nothing to the variance. It needs no x_0: x_t alone is used, and it equals DSM up to a constant. It
    costs a second derivative for each of `projections`. The directions are the signs of `noises` if given, else of noise that it draws."""

    projections: Few = 1
    reduced: bool = True

    learned_variance: ClassVar[bool] = False
    derives_twice: ClassVar[bool] = True

    @property
    def noises(self) -> int:
        """How many more noises it takes."""
        return self.projections

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None, *noises: Tensor) -> LossTerms:
        x_t, score, weight = score_at(denoiser, x0, t, eps, cond)
        terms = []
        for noise in noises or (torch.randn_like(x_t) for _ in range(self.projections)):
            v = noise.sign()
            trace = (times_jacobian(v, score, x_t) * v).flatten(1).mean(1)
            square = per_sample_mean(score**2) if self.reduced else (score * v).flatten(1).sum(1) ** 2 / x0[0].numel()
            terms.append(trace + 0.5 * square)
        loss = weight * torch.stack(terms).mean(0)
        return {"loss": loss, "ssm": loss}


@dataclass(frozen=True)
class ExactScoreMatching:
    """Implicit score matching, lambda(sigma) (tr(d s/dx) + 1/2 ||s||^2) over the number of dimensions, lambda = sigma^2 (Hyvarinen
    2005, eq. 4): what SSM estimates. One derivative for each dimension: for tests and small problems."""

    learned_variance: ClassVar[bool] = False
    derives_twice: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> LossTerms:
        x_t, score, weight = score_at(denoiser, x0, t, eps, cond)
        basis = torch.eye(x0[0].numel(), dtype=x0.dtype, device=x0.device)
        rows = (times_jacobian(e.reshape(x0[0].shape).expand_as(x_t), score, x_t).flatten(1) @ e for e in basis)
        loss = weight * (sum(rows) / len(basis) + 0.5 * per_sample_mean(score**2))
        return {"loss": loss, "ism": loss}


class Uncertainty(nn.Module):
    """EDM2's learned weighting: L(t)/exp(u(t)) + u(t), whose minimum is at u = log E[L(t)] (2312.02696, eq. 14, 15 and app. B.2).

    So every level counts alike whatever its own loss. u is one linear layer on random Fourier features of c_noise =
    log(sigma/alpha)/4, starts at 0, is trained with the network by the same optimizer, and plays no part in sampling."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, objective: Objective, channels: Few = 128) -> None:
        super().__init__()
        self.objective, self.learned_variance, self.noises = objective, objective.learned_variance, getattr(objective, "noises", 0)
        self.fixed_variance, self.fits = (getattr(objective, name, None) for name in ("fixed_variance", "fits"))
        self.derives_twice, self.needs_steps = (getattr(objective, name, False) for name in ("derives_twice", "needs_steps"))
        self.register_buffer("frequencies", 2 * pi * torch.randn(channels))
        self.register_buffer("phases", 2 * pi * torch.rand(channels))
        self.out = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def log_variance(self, log_snr: Tensor) -> Tensor:
        """u, [b]."""
        c_noise = (-log_snr / 8).clamp(-5, 5).to(self.phases)  # +-5: log(sigma/alpha) = +-20, where alpha or sigma is 0
        features = 2**0.5 * (c_noise[:, None] * self.frequencies + self.phases).cos()
        return self.out(features).squeeze(1)

    def forward(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None, *noises: Tensor) -> LossTerms:
        losses, u = self.objective(denoiser, x0, t, eps, cond, *noises), self.log_variance(denoiser.schedule.log_snr(t.double()))
        return losses | {"loss": losses["loss"] / u.exp() + u, "weighted": losses["loss"], "log_variance": u}


def check(denoiser: Denoiser, objective: Objective) -> None:
    """Raises ValueError with one sentence if this objective cannot train this denoiser."""
    name = type(objective).__name__
    if getattr(objective, "reconstructs", False):
        raise ValueError(f"objective {name} trains an autoencoder: say task=autoencoder, or another objective.")
    if objective.learned_variance != denoiser.learned_variance:
        has, wants = ("no", "trains") if objective.learned_variance else ("a", "does not train")
        raise ValueError(f"objective {name} {wants} a learned variance, and the denoiser has {has} learned variance.")
    if in_steps(objective) and denoiser.schedule.num_timesteps is None:
        raise ValueError(
            f"objective {name} is a sum over discrete time steps, and {type(denoiser.schedule).__name__} has none; "
            "use objective=simple or a schedule such as cosine."
        )
    if fits := getattr(objective, "fits", None):
        fits(denoiser.schedule)


def in_steps(objective: Objective) -> bool:
    """Whether an objective needs a schedule with time steps, as those do whose bound trains a variance."""
    return objective.learned_variance or getattr(objective, "needs_steps", False)
