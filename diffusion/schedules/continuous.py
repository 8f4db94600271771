"""Schedules in continuous time: the SDEs of Song et al. 2021, EDM, and straight paths."""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from diffusion.schedules.base import Exploding, Schedule, lerp
from diffusion.support.ranges import Positive

INF = float("inf")


@dataclass(frozen=True)
class VESDE(Exploding):
    """The VE SDE (SDE eq. 31), continuous: sigma = sigma_min (sigma_max/sigma_min)^t from t = `first`, the paper's least time, on.

    Below it sigma falls linearly to 0."""

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0

    first: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"{type(self).__name__} needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}.")

    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma for t in [first, 1]."""
        return lerp(log(self.sigma_min), log(self.sigma_max), t)

    def inverse(self, log_sigma: Tensor) -> Tensor:
        """The inverse of `log_sigma`."""
        return (log_sigma - log(self.sigma_min)) / log(self.sigma_max / self.sigma_min)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.log_sigma(t.clamp(min=self.first)) + (t / self.first).clamp(max=1).log())

    def time(self, log_snr: Tensor) -> Tensor:
        value = -log_snr.double() / 2
        below = value - self.log_sigma(value.new_full((), self.first))
        return torch.where(below < 0, self.first * below.exp(), self.inverse(value)).clamp(0, 1).to(log_snr.dtype)


@dataclass(frozen=True)
class EDM(VESDE):
    """EDM: alpha = 1, with t along the paper's ladder: sigma^(1/rho) is linear from sigma_min at t = 0.001 to sigma_max at 1 (eq. 5).

    So even times are a good grid; the paper's own time is sigma. The label is its c_noise, log(sigma)/4 (table 1)."""

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0

    first: ClassVar[float] = 1e-3

    def log_sigma(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.rho * lerp(low, high, (t - self.first) / (1 - self.first)).log()

    def inverse(self, log_sigma: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.first + (1 - self.first) * ((log_sigma / self.rho).exp() - low) / (high - low)

    def label(self, t: Tensor) -> Tensor:
        return (-self.log_snr(t.double()) / 8).to(t.dtype)

    def labelled(self, label: Tensor) -> Tensor:
        return self.time(-8 * label.double())


@dataclass(frozen=True)
class VPSDE(Schedule):
    """The VP SDE (SDE eq. 33), continuous: alpha = exp(-B/2), sigma^2 = 1 - exp(-B), with B the integral of beta from 0 to t,

    B = beta_min t + (beta_max - beta_min) t^2 / 2. Its DDPM has T steps of beta_min/T .. beta_max/T."""

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta_min < self.beta_max:
            raise ValueError(f"{type(self).__name__} needs 0 < beta_min < beta_max, not {self.beta_min} and {self.beta_max}.")

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def when(self, integral: Tensor) -> Tensor:
        """The t of a B, the quadratic's root in the form that does not cancel; 1 for any beyond B(1)."""
        integral = integral.clamp(max=self.beta_min + self.beta_max)  # B(1) is half of it
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).clamp(max=1)

    def log_snr(self, t: Tensor) -> Tensor:
        return -self.integral(t).expm1().log()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.when(softplus(-log_snr.double(), threshold=40)).to(log_snr.dtype)


@dataclass(frozen=True)
class SubVP(VPSDE):
    """The sub-VP SDE (SDE eq. 29, app. C): alpha = exp(-B/2) as in VP, and sigma, not sigma^2, is 1 - exp(-B)."""

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (2 * (self.integral(t) / 2).sinh()).log()

    def _integral(self, log_snr: Tensor) -> Tensor:
        return 2 * ((-log_snr.double() / 2).exp() / 2).asinh()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.when(self._integral(log_snr)).to(log_snr.dtype)

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(log_snr)
        return (-integral / 2).exp(), -(-integral).expm1()


@dataclass(frozen=True)
class Flow(Schedule):
    """Straight paths (rectified flow; FM eq. 20): alpha = 1 - u, sigma = u, with u = shift t / (1 + (shift - 1) t) (SD3 eq. 23)."""

    shift: Positive = 1.0

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(self.shift * t))

    def time(self, log_snr: Tensor) -> Tensor:
        odds = (-log_snr.double() / 2).exp() / self.shift  # t / (1 - t)
        return torch.where(odds == INF, 1.0, odds / (1 + odds)).to(log_snr.dtype)

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()
