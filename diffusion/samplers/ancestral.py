"""Samplers that draw each x_s from a Gaussian around the one estimate of x_0: DDPM, DDIM, Euler, Euler ancestral."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.posterior import posterior, step
from diffusion.samplers.base import State
from diffusion.support.ranges import Checked, Share
from diffusion.typing import Denoise, Noise


def fixed_small(small: Tensor, large: Tensor, frac: Tensor | None) -> Tensor:
    """beta tilde: right for data that is a single point (DDPM sec. 3.2)."""
    return small


def fixed_large(small: Tensor, large: Tensor, frac: Tensor | None) -> Tensor:
    """beta: right for data that is N(0, I) (DDPM sec. 3.2)."""
    return large


def learned(small: Tensor, large: Tensor, frac: Tensor | None) -> Tensor:
    """exp(v log large + (1 - v) log small) (IDDPM eq. 15)."""
    if frac is None:
        raise ValueError(
            "DDPM(variance='learned') needs a denoiser with a learned variance; train with objective=hybrid, "
            "or sample with sampler.variance=fixed_small."
        )
    return (frac * large.log() + (1 - frac) * small.log()).exp()


def auto(small: Tensor, large: Tensor, frac: Tensor | None) -> Tensor:
    """The learned variance of a model that has one, fixed_small for one that has none."""
    return small if frac is None else learned(small, large, frac)


@dataclass(frozen=True)
class DDPM(Checked):
    """x_s ~ N(posterior mean, variance) (DDPM alg. 2; IDDPM sec. 3.1), over any sub-sequence of times; no noise on the last move.

    `variance` is fixed_small, fixed_large, learned or auto. Raises ValueError for another word, or for learned where there is none."""

    variance: str = "fixed_small"

    choices: ClassVar = {f.__name__: f for f in (fixed_small, fixed_large, learned, auto)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance not in self.choices:
            raise ValueError(f"sampler.variance={self.variance} is not one of {', '.join(self.choices)}.")

    @property
    def needs_variance(self) -> bool:
        """Whether it samples only models with a learned variance."""
        return self.variance == "learned"

    def drawn(self, small: Tensor, large: Tensor, frac: Tensor | None) -> Tensor:
        """The variance of a move, where the posterior's and the larger one are these."""
        return self.choices[self.variance](small, large, frac)

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            x, small, large = posterior(x, estimate.x0, t, s, denoise.schedule)
            if s > 0:
                x = x + self.drawn(small, large, estimate.frac).sqrt() * noise(x)
            yield State(x, estimate.x0, s)


@dataclass(frozen=True)
class DDIM(Checked):
    """DDIM (Song et al. 2020, eq. 12): eta = 0 is the probability-flow ODE, eta = 1 is DDPM with fixed_small; beyond 1
    eta sigma_s would exceed the noise that there is."""

    eta: Share = 0.0

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        for t, s in pairwise(times):
            estimate = denoise(x, t)
            x = step(x, estimate.x0, t, s, denoise.schedule, self.eta, noise)
            yield State(x, estimate.x0, s)


@dataclass(frozen=True)
class Euler(DDIM):
    """Euler's method on dx/ds = (x - D)/s, x = x_0 + s eps (EDM alg. 1 without the correction): it is DDIM with eta = 0."""


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """Euler to sigma_down, then noise up to sigma_s (k-diffusion's sample_euler_ancestral): it is DDIM with eta = 1."""

    eta: Share = 1.0
