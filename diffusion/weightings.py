"""How much each noise level counts in the loss. `weighting(log_snr) -> [b]`, the weight of ||x0_hat - x0||^2 at SNR = alpha^2/sigma^2.

Stated for x_0, a weighting is right for every parameterization: `native` turns it into the weight of the network's own squared error.
With SNR-weighted x_0 the loss is DDPM's, of eps; the weights that papers state for eps or v are these times the same factors.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Positive


class Weighting(Checked, ABC):
    """The contract."""

    @abstractmethod
    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weight of the squared error of x_0, [b]."""

    def native(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The weight of the squared error of the network's output, [b], float64.

        At a fixed x_t an error e in x_0 is one of -(alpha/sigma) e in eps, and of target(e, -(alpha/sigma) e) in the output: for
        eps, 1/SNR of x_0's weight; for v of a variance-preserving path, 1/(SNR + 1) (2303.09556, sec. 3.4)."""
        t = t.double()
        alpha, sigma = schedule(t)
        gain = parameterization.target(torch.ones_like(t), -alpha / sigma, alpha, sigma)
        return self(schedule.log_snr(t)) / gain**2


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) (Hang et al. 2303.09556, eq. 9): min(SNR, gamma)/SNR for eps, min(SNR, gamma)/(SNR + 1) for v."""

    gamma: Positive = 5.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """gamma SNR / (SNR + gamma) (Crowson et al. 2401.11605, sec. 3.5, with gamma as in MinSNR): a smooth minimum of the two."""

    gamma: Positive = 5.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return 1 / ((-log_snr).exp() + 1 / self.gamma)


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """max(SNR, 1) (Salimans & Ho 2202.00512, sec. 4): the worse of the errors of x_0 and eps."""

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp().clamp(min=1)


@dataclass(frozen=True)
class P2(Weighting):
    """1 / (k + SNR)^gamma of eps's error (Choi et al. 2204.00227, eq. 8), which is SNR / (k + SNR)^gamma of x_0's."""

    gamma: Positive = 1.0
    k: Positive = 1.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp() * (self.k + log_snr.exp()) ** -self.gamma


@dataclass(frozen=True)
class EDM(Weighting):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = SNR + 1/sigma_data^2 (EDM table 1): with EDM's preconditioning of the same
    sigma_data the weight of the network's own error is 1 at every level."""

    sigma_data: Positive = 0.5

    def __call__(self, log_snr: Tensor) -> Tensor:
        return log_snr.exp() + self.sigma_data**-2
