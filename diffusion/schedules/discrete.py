"""Schedules known at T steps: the betas of DDPM and its kin, and NCSN's geometric levels."""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from math import log, pi
from typing import Annotated

import torch
from torch import Tensor

from diffusion.schedules.base import Exploding, Schedule, lerp
from diffusion.support.ranges import NonNegative, Positive, Probability, Range

INF = float("inf")


@dataclass(frozen=True)
class Discrete(Schedule):
    """A schedule known at T knots t = i/T, i = 1..T (step i in papers, index i - 1 in most code).

    Between knots log(sigma/alpha) is linear in t (with `linear_in_sigma`, sigma/alpha itself). Below the first knot sigma/alpha
    falls linearly to 0; above the last but one, alpha/sigma falls linearly to 0 if the last knot is pure noise.
    """

    num_timesteps: Annotated[int, Range(least=2, most=100_000)] = 1000
    _: KW_ONLY
    linear_in_sigma: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log_ratios()

    @abstractmethod
    def log_ratios(self) -> Tensor:
        """log(sigma/alpha) at the knots, [T] float64, increasing."""

    def label(self, t: Tensor) -> Tensor:
        """T t - 1: the step as the networks of this field count it, 0..T-1; fractional between knots, never below 0."""
        return (self.num_timesteps * t - 1).clamp(min=0)

    def labelled(self, label: Tensor) -> Tensor:
        return (label.double() + 1) / self.num_timesteps

    def log_snr(self, t: Tensor) -> Tensor:
        table, position = _table(self, t.device), self.num_timesteps * t - 1
        low = position.floor().long().clamp(0, self.num_timesteps - 2)
        a, b, w = table[low], table[low + 1], position - low
        inner = torch.lerp(a.exp(), b.exp(), w).log() if self.linear_in_sigma else torch.lerp(a, b, w)
        inner = torch.where(b == INF, a - (1 - w).log(), inner)  # sigma/alpha = (sigma/alpha)_{T-1} / (1 - w)
        return -2 * torch.where(position < 0, table[0] + (self.num_timesteps * t).log(), inner)

    def time(self, log_snr: Tensor) -> Tensor:
        table, value = _table(self, log_snr.device), -log_snr.double() / 2
        low = (torch.searchsorted(table, value.contiguous()) - 1).clamp(0, self.num_timesteps - 2)
        a, b = table[low], table[low + 1]
        if self.linear_in_sigma:
            w = (value.exp() - a.exp()) / (b.exp() - a.exp())
        else:
            w = (value - a) / (b - a)
        w = torch.where(b == INF, -torch.expm1(a - value), w)
        t = torch.where(value < table[0], (value - table[0]).exp(), low + 1 + w) / self.num_timesteps
        return t.clamp(0, 1).to(log_snr.dtype)


@lru_cache(maxsize=64)
def _table(schedule: Discrete, device: torch.device) -> Tensor:
    return schedule.log_ratios().to(device)


@dataclass(frozen=True)
class Betas(Discrete):
    """Variance preserving by betas (DDPM eq. 4): alpha_t^2 = abar_t = prod_{s<=t} (1 - beta_s), sigma_t^2 = 1 - abar_t.

    `zero_terminal_snr` shifts and scales sqrt(abar) so that the last is 0 and the first unchanged (Lin et al. 2305.08891, alg. 1).
    Raises ValueError if a beta leaves (0, 1)."""

    _: KW_ONLY
    zero_terminal_snr: bool = False

    @abstractmethod
    def betas(self) -> Tensor:
        """The T betas, float64."""

    @property
    def ramp(self) -> Tensor:
        """0 .. 1 over the T steps."""
        return torch.linspace(0, 1, self.num_timesteps, dtype=torch.float64)

    @property
    def scale(self) -> float:
        """1000/T: betas are stated for T = 1000 and scaled so that abar_T stays where it is (IDDPM sec. 3.2's repository)."""
        return 1000 / self.num_timesteps

    def log_ratios(self) -> Tensor:
        betas = self.betas()
        if not (betas.min() > 0 and betas.max() < 1):
            bad = betas[(betas <= 0) | (betas >= 1)][0].item()
            raise ValueError(
                f"{type(self).__name__} with num_timesteps={self.num_timesteps} has a beta of {bad:.4g}, outside (0, 1); "
                "use more time steps, a smaller beta_end, or schedule=cosine."
            )
        log_abar = torch.log1p(-betas).cumsum(0)
        if self.zero_terminal_snr:
            root = (log_abar / 2).exp()
            log_abar = 2 * ((root - root[-1]) * root[0] / (root[0] - root[-1])).log()
        return (torch.log(-torch.expm1(log_abar)) - log_abar) / 2


@dataclass(frozen=True)
class Linear(Betas):
    """beta_t linear from beta_start to beta_end (DDPM sec. 4)."""

    beta_start: Probability = 1e-4
    beta_end: Probability = 0.02

    def betas(self) -> Tensor:
        return self.scale * lerp(self.beta_start, self.beta_end, self.ramp)


@dataclass(frozen=True)
class Quadratic(Betas):
    """sqrt(beta_t) linear from sqrt(beta_start) to sqrt(beta_end) (the DDPM and DDIM repositories' "quad")."""

    beta_start: Probability = 1e-4
    beta_end: Probability = 0.02

    def betas(self) -> Tensor:
        return self.scale * lerp(self.beta_start**0.5, self.beta_end**0.5, self.ramp) ** 2


@dataclass(frozen=True)
class ScaledLinear(Quadratic):
    """Stable Diffusion's schedule (LDM): the quadratic formula with 0.00085 and 0.012."""

    beta_start: Probability = 0.00085
    beta_end: Probability = 0.012


@dataclass(frozen=True)
class Sigmoid(Betas):
    """beta_t = beta_start + (beta_end - beta_start) / (1 + exp(tau (1 - 2u))), u = 0 .. 1 (GeoDiff's repository, tau = 6)."""

    beta_start: Probability = 1e-4
    beta_end: Probability = 0.02
    tau: Positive = 6.0

    def betas(self) -> Tensor:
        return self.scale * lerp(self.beta_start, self.beta_end, (self.tau * (2 * self.ramp - 1)).sigmoid())


@dataclass(frozen=True)
class Cosine(Betas):
    """abar(u) = cos^2((u + s)/(1 + s) pi/2), beta_t = 1 - abar(t/T)/abar((t-1)/T), at most max_beta (IDDPM eq. 17)."""

    s: NonNegative = 0.008
    max_beta: Probability = 0.999

    def betas(self) -> Tensor:
        u = torch.linspace(0, 1, self.num_timesteps + 1, dtype=torch.float64)
        abar = torch.cos((u + self.s) / (1 + self.s) * pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.max_beta)


@dataclass(frozen=True)
class VE(Exploding, Discrete):
    """Variance exploding (NCSN; SDE eq. 9): alpha = 1, sigma geometric from sigma_min at the first knot to sigma_max at t = 1."""

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0

    def log_ratios(self) -> Tensor:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}.")
        return torch.linspace(log(self.sigma_min), log(self.sigma_max), self.num_timesteps, dtype=torch.float64)
