"""Samplers that walk at one noise level: annealed Langevin dynamics, and predictor-corrector.

At any noise level, whatever alpha, a Langevin step of size a sigma^2 along the score -eps/sigma is
x <- x + sigma (sqrt(a) z - (a/2) eps), z ~ N(0, I). It is the same in x and in x/alpha, and finite where alpha = 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Self

import torch
from torch import Tensor

from diffusion.samplers.ancestral import DDPM
from diffusion.samplers.base import Sampler, State, last, part
from diffusion.support.ranges import Checked, Count, Natural, Positive, Range
from diffusion.typing import Denoise, Noise, expand


def langevin(x: Tensor, eps: Tensor, a: Tensor | float, sigma: Tensor, z: Tensor) -> Tensor:
    """x + (a sigma^2 / 2) score + sqrt(a) sigma z; a is a number or shaped to multiply x."""
    return x + sigma * (a**0.5 * z - a / 2 * eps)


@dataclass(frozen=True)
class Langevin(Checked):
    """Annealed Langevin dynamics (NCSN alg. 1): at each time of the grid, `walk` steps of size a_i = step sigma_i^2 / sigma_L^2; then
    a last denoising, x_0(x, t_L) (2009.05475, sec. 2).

    `ratio` is a_i / sigma_i^2, the paper's step / sigma_L^2 (2e-5 / 0.01^2 = 0.2), which does not depend on the grid's last level; at 4 or
    more a walk diverges. Between levels x/alpha is kept (x itself in the paper, where alpha = 1); from a level with alpha = 0, which holds
    nothing of the data, x/sigma is kept."""

    walk: Count = 100
    ratio: Annotated[float, Range(above=0, below=4)] = 0.2

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        for t, s in pairwise(times):
            (alpha, sigma), (alpha_s, sigma_s) = denoise.schedule(t), denoise.schedule(s)
            for _ in range(self.walk):
                estimate = denoise(x, t)
                x = langevin(x, estimate.eps, self.ratio, sigma, noise(x))
            if s > 0:
                x = x * (alpha_s / alpha if alpha > 0 else sigma_s / sigma)
                yield State(x, estimate.x0, s)
            else:
                x = denoise(x, t).x0
                yield State(x, x, s)


@dataclass(frozen=True)
class PredictorCorrector(Checked):
    """Predictor-corrector sampling (SDE alg. 1): a move from t to s by any sampler, then `corrections` Langevin steps at s.

    The default predictor is the posterior's mean with the larger variance: for alpha = 1 alg. 2's reverse diffusion, for a
    variance-preserving path the paper's ancestral sampling (SDE eq. 4). The corrector's step (alg. 4, 5) is 2 (snr |z|/|score|)^2. The
    norms are each sample's own, where the paper's code takes the batch's means: an image must not depend on its neighbours. Alg. 5's
    further factor 1 - beta_t, near 1, is left out: one rule for every path. The last move, to t = 0, is not corrected."""

    predictor: Sampler = DDPM("fixed_large")  # noqa: RUF009 (frozen)
    snr: Positive = 0.16
    corrections: Natural = 1

    def share(self, share: float) -> Self:
        """The predictor's share."""
        return replace(self, predictor=part(self.predictor, share))

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        predictor = part(self.predictor, 1 / (len(times) - 1))
        for t, s in pairwise(times):
            state = last(predictor(denoise, x, torch.stack([t, s]), noise))
            x = state.x
            for _ in range(self.corrections if s > 0 else 0):
                eps, z = denoise(x, s).eps, noise(x)
                norms = [torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (z, eps)]
                a = (2 * self.snr * norms[0] / norms[1].clamp(min=1e-12)) ** 2
                x = langevin(x, eps, expand(a, x), denoise.schedule(s)[1], z)
            yield State(x, state.x0, s)
