"""Guidance: Denoisers made of Denoisers. Each wraps a denoiser, changes its (x_0, eps), and is called like it, so they nest.

Only x_0 and eps are ever guided; a learned variance passes through from the conditional model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Estimate, null
from diffusion.schedules import Schedule
from diffusion.typing import expand


@dataclass(frozen=True)
class Guidance(ABC):
    """The contract: a frozen wrapper with the schedule and device of the denoiser inside."""

    denoiser: "Denoiser | Guidance"

    @property
    def schedule(self) -> Schedule:
        """The innermost denoiser's schedule."""
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        """The innermost denoiser's device."""
        return self.denoiser.device

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """The guided estimate."""


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """eps = eps(null) + scale (eps(c) - eps(null)) (CFG eq. 6, whose w is scale - 1), both halves in one batched call.

    scale = 1 is the conditional model (one call's cost), 0 the unconditional one. Raises ValueError when scale is not 1 and there is
    no condition to guide towards."""

    scale: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        if self.scale == 1:
            return self.denoiser(x_t, t, cond)
        if cond is None:
            raise ValueError(f"guidance.scale={self.scale} needs a conditional model and a condition; set guidance.scale=1 for neither.")
        both = self.denoiser(torch.cat([x_t, x_t]), t.repeat(2) if t.ndim else t, torch.cat([cond, null(cond)]))
        (x0, x0_null), (eps, eps_null) = both.x0.chunk(2), both.eps.chunk(2)
        frac = None if both.frac is None else both.frac.chunk(2)[0]
        return Estimate(x0_null + self.scale * (x0 - x0_null), eps_null + self.scale * (eps - eps_null), frac)


@dataclass(frozen=True)
class Clip(Guidance):
    """x_0 clipped to the data's range, and eps = (x_t - alpha x_0) / sigma derived again from it."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        estimate = self.denoiser(x_t, t, cond)
        alpha, sigma = (expand(v, x_t) for v in self.schedule(t))
        x0 = estimate.x0.clamp(self.low, self.high)
        return Estimate(x0, (x_t - alpha * x0) / sigma, estimate.frac)
