"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, eps ~ N(0, I), with t in [0, 1] (0 is data, 1 is noise).

A schedule is a map from t to the log signal-to-noise ratio, lambda = log(alpha^2 / sigma^2), and from lambda to (alpha, sigma).
All arithmetic is in float64; the answer has t's dtype. At t = 0 every schedule has sigma = 0 exactly.
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from math import log, pi
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

INF = float("inf")


class Schedule(ABC):
    """The contract. A subclass gives `log_snr` and `time`; one that is not variance preserving also gives `native`."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = 2 log(alpha_t / sigma_t): +inf at t = 0, decreasing."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; a log-SNR beyond the schedule's ends maps to the nearer end."""

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR. Variance preserving: alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)."""
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def label(self, t: Tensor) -> Tensor:
        """What the network is told of the time; in continuous time, 1000 t."""
        return 1000 * t

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each of t's shape and dtype."""
        alpha, sigma = self.native(self.log_snr(t.double()))
        return alpha.to(t.dtype), sigma.to(t.dtype)

    @property
    def reaches_noise(self) -> bool:
        """Whether alpha(1) = 0, so that x_1 holds nothing of x_0 (flow matching, zero-terminal-SNR)."""
        return self(torch.ones((), dtype=torch.float64))[0].item() == 0.0


@dataclass(frozen=True)
class Discrete(Schedule):
    """A schedule known at T knots t = i/T, i = 1..T (the papers' step i, this field's code's index i - 1).

    Between knots log(sigma/alpha) is linear in t (with `linear_in_sigma`, sigma/alpha itself). Below the first knot sigma/alpha
    falls linearly to 0; above the last but one, alpha/sigma falls linearly to 0 if the last knot is pure noise.
    """

    num_timesteps: int = 1000
    _: KW_ONLY
    linear_in_sigma: bool = False

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise ValueError(f"schedule.num_timesteps={self.num_timesteps} is too few; a discrete schedule has at least 2 steps.")
        self.log_ratios()

    @abstractmethod
    def log_ratios(self) -> Tensor:
        """log(sigma/alpha) at the knots, [T] float64, increasing."""

    def label(self, t: Tensor) -> Tensor:
        """T t - 1: the step as the networks of this field count it, 0..T-1; fractional between knots, never below 0."""
        return (self.num_timesteps * t - 1).clamp(min=0)

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

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        return self.scale * torch.lerp(*_ends(self.beta_start, self.beta_end), self.ramp)


@dataclass(frozen=True)
class Quadratic(Betas):
    """sqrt(beta_t) linear from sqrt(beta_start) to sqrt(beta_end) (the DDPM and DDIM repositories' "quad")."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        return self.scale * torch.lerp(*_ends(self.beta_start**0.5, self.beta_end**0.5), self.ramp) ** 2


@dataclass(frozen=True)
class ScaledLinear(Quadratic):
    """Stable Diffusion's schedule (LDM): the quadratic formula with 0.00085 and 0.012."""

    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True)
class Sigmoid(Betas):
    """beta_t = beta_start + (beta_end - beta_start) / (1 + exp(tau (1 - 2u))), u = 0 .. 1 (GeoDiff's repository, tau = 6)."""

    beta_start: float = 1e-4
    beta_end: float = 0.02
    tau: float = 6.0

    def betas(self) -> Tensor:
        return self.scale * torch.lerp(*_ends(self.beta_start, self.beta_end), (self.tau * (2 * self.ramp - 1)).sigmoid())


@dataclass(frozen=True)
class Cosine(Betas):
    """abar(u) = cos^2((u + s)/(1 + s) pi/2), beta_t = 1 - abar(t/T)/abar((t-1)/T), at most max_beta (IDDPM eq. 17)."""

    s: float = 0.008
    max_beta: float = 0.999

    def betas(self) -> Tensor:
        u = torch.linspace(0, 1, self.num_timesteps + 1, dtype=torch.float64)
        abar = torch.cos((u + self.s) / (1 + self.s) * pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.max_beta)


class Exploding(Schedule):
    """alpha = 1 throughout: sigma is the noise-to-signal ratio itself."""

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr), (-log_snr / 2).exp()


@dataclass(frozen=True)
class VE(Exploding, Discrete):
    """Variance exploding (NCSN; SDE eq. 9): alpha = 1, sigma geometric from sigma_min at the first knot to sigma_max at t = 1."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def log_ratios(self) -> Tensor:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"VE needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}.")
        return torch.linspace(log(self.sigma_min), log(self.sigma_max), self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class VESDE(Exploding):
    """The VE SDE (SDE eq. 31), continuous: sigma = sigma_min (sigma_max/sigma_min)^t from t = `first`, the paper's least time, on.

    Below it sigma falls linearly to 0."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    first: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"{type(self).__name__} needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}.")

    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma for t in [first, 1]."""
        return torch.lerp(*_ends(log(self.sigma_min), log(self.sigma_max)), t)

    def inverse(self, log_sigma: Tensor) -> Tensor:
        """The inverse of `log_sigma`."""
        return (log_sigma - log(self.sigma_min)) / log(self.sigma_max / self.sigma_min)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.log_sigma(t.clamp(min=self.first)) + (t / self.first).clamp(max=1).log())

    def time(self, log_snr: Tensor) -> Tensor:
        value = -log_snr.double() / 2
        below = value - self.log_sigma(value.new_tensor(self.first))
        return torch.where(below < 0, self.first * below.exp(), self.inverse(value)).clamp(0, 1).to(log_snr.dtype)


@dataclass(frozen=True)
class EDM(VESDE):
    """EDM: alpha = 1, with t along the paper's ladder: sigma^(1/rho) is linear from sigma_min at t = 0.001 to sigma_max at 1 (eq. 5).

    So even times are a good grid; the paper's own time is sigma. The label is its c_noise, log(sigma)/4 (table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    first: ClassVar[float] = 1e-3

    def log_sigma(self, t: Tensor) -> Tensor:
        low, high = _ends(self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho))
        return self.rho * torch.lerp(low, high, (t - self.first) / (1 - self.first)).log()

    def inverse(self, log_sigma: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.first + (1 - self.first) * ((log_sigma / self.rho).exp() - low) / (high - low)

    def label(self, t: Tensor) -> Tensor:
        return (-self.log_snr(t.double()) / 8).to(t.dtype)


@dataclass(frozen=True)
class VPSDE(Schedule):
    """The VP SDE (SDE eq. 33), continuous: alpha = exp(-B/2), sigma^2 = 1 - exp(-B), with B the integral of beta from 0 to t,

    B = beta_min t + (beta_max - beta_min) t^2 / 2. Its DDPM has T steps of beta_min/T .. beta_max/T."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"{type(self).__name__} needs 0 < beta_min < beta_max, not {self.beta_min} and {self.beta_max}.")

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def when(self, integral: Tensor) -> Tensor:
        """The t of a B, the quadratic's root in the form that does not cancel."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).clamp(max=1)

    def log_snr(self, t: Tensor) -> Tensor:
        return -self.integral(t).expm1().log()

    def time(self, log_snr: Tensor) -> Tensor:
        most = self.integral(torch.ones((), dtype=torch.float64, device=log_snr.device))
        return self.when(softplus(-log_snr.double(), threshold=40).clamp(max=most)).to(log_snr.dtype)


@dataclass(frozen=True)
class SubVP(VPSDE):
    """The sub-VP SDE (SDE eq. 29, app. C): alpha = exp(-B/2) as in VP, and sigma, not sigma^2, is 1 - exp(-B)."""

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (2 * (self.integral(t) / 2).sinh()).log()

    def _integral(self, log_snr: Tensor) -> Tensor:
        most = self.integral(torch.ones((), dtype=torch.float64, device=log_snr.device))
        return (2 * ((-log_snr.double() / 2).exp() / 2).asinh()).clamp(max=most)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.when(self._integral(log_snr)).to(log_snr.dtype)

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(log_snr)
        return (-integral / 2).exp(), -(-integral).expm1()


@dataclass(frozen=True)
class Flow(Schedule):
    """Straight paths (rectified flow; FM eq. 20): alpha = 1 - u, sigma = u, with u = shift t / (1 + (shift - 1) t) (SD3 eq. 23)."""

    shift: float = 1.0

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(self.shift * t))

    def time(self, log_snr: Tensor) -> Tensor:
        odds = (-log_snr.double() / 2).exp() / self.shift  # t / (1 - t)
        return torch.where(odds == INF, 1.0, odds / (1 + odds)).to(log_snr.dtype)

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()


def _ends(a: float, b: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
