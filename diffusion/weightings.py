"""How much each noise level counts in the loss: the weight of ||x0_hat - x0||^2 at a time, or at SNR = alpha^2/sigma^2.

Stated for x_0, a weighting is right for every parameterization: `native` turns it into the weight of the network's own squared error.
With SNR-weighted x_0 the loss is DDPM's, of eps; the weights that papers state for eps or v are these times the same factors.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.parameterization import Parameterization
from diffusion.posterior import both_levels
from diffusion.schedules import Schedule
from diffusion.schedules.base import time_steps
from diffusion.support.ranges import Checked, Fraction, NonNegative, Positive


class TimeWeighting(Checked, ABC):
    """The contract. `needs_steps` says that the schedule must be discrete."""

    needs_steps: ClassVar[bool] = False

    @abstractmethod
    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of the squared error of x_0 at t [b], [b], float64."""

    def fits(self, schedule: Schedule) -> None:
        """Raises ValueError if the weights are not those of this schedule."""

    def native(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The weight of the squared error of the network's output, [b], float64.

        At a fixed x_t an error e in x_0 is one of -(alpha/sigma) e in eps, and of target(e, -(alpha/sigma) e) in the output: for
        eps, 1/SNR of x_0's weight; for v of a variance-preserving path, 1/(SNR + 1) (2303.09556, sec. 3.4)."""
        t = t.double()
        alpha, sigma = schedule(t)
        gain = parameterization.target(torch.ones_like(t), -alpha / sigma, alpha, sigma)
        return self.at(schedule, t) / gain**2


class Weighting(TimeWeighting):
    """One that follows from the noise level: `weighting(log_snr) -> [b]`."""

    @abstractmethod
    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weight of the squared error of x_0, [b]."""

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self(schedule.log_snr(t))


@dataclass(frozen=True)
class PerStep(TimeWeighting):
    """gamma_t of eps's squared error, t = 1 .. T, which is gamma_t SNR of x_0's: L_gamma = sum_t gamma_t E||eps - eps_theta||^2 (DDIM
    eq. 5). `gamma` is a number for each step of a discrete schedule, or one for all: 1 is DDPM's L_simple.

    `fits` raises ValueError for another number of them than the schedule has steps."""

    gamma: Sequence[NonNegative] | NonNegative = 1.0

    needs_steps: ClassVar[bool] = True

    def fits(self, schedule: Schedule) -> None:
        given, steps = torch.as_tensor(self.gamma), schedule.num_timesteps
        if given.ndim and len(given) != steps:
            raise ValueError(
                f"objective.weighting.gamma has {len(given)} numbers and {type(schedule).__name__} {steps or 'no'} time steps: say one for "
                "each step, or a single number for all."
            )

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        steps = time_steps(schedule)
        gamma = torch.as_tensor(self.gamma, dtype=torch.float64).to(t.device, non_blocking=True).expand(steps)
        return gamma[(t * steps).round().long() - 1] * schedule.log_snr(t).exp()


@dataclass(frozen=True)
class DDIMBound(TimeWeighting):
    """Those of the variational bound of DDIM's process with this eta, which is L_gamma but for a constant (DDIM theorem 1), in nats.

    q and p are Gaussians of one deviation std whose means are (alpha_s - keep alpha_t) x_0 apart from what they share (`posterior.step`):
    x_0's error costs (alpha_s - keep alpha_t)^2 / (2 std^2). At t = 1/T, where DDIM's std is 0 and the theorem wants a positive one, it is
    that of 2/T, as in DDPM's bound; eta = 1 is that bound with fixed_small."""

    eta: Fraction = 1.0

    needs_steps: ClassVar[bool] = True

    def at(self, schedule: Schedule, t: Tensor) -> Tensor:
        knot = 1 / time_steps(schedule)
        s = ((t / knot).round() - 1) * knot
        (alpha_t, alpha_s), (sigma_t, sigma_s), fresh = both_levels(t, s, schedule)
        keep = sigma_s / sigma_t * (1 - self.eta**2 * fresh).clamp(min=0).sqrt()
        _, (_, positive), new = both_levels(t.clamp(min=2 * knot), s.clamp(min=knot), schedule)
        return (alpha_s - keep * alpha_t) ** 2 / (2 * self.eta**2 * positive**2 * new)


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
