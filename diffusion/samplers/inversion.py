"""DDIM run backwards: from an image to the noise it would have come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.samplers.base import State
from diffusion.support.ranges import Checked, Natural
from diffusion.typing import Denoise, Noise


@dataclass(frozen=True)
class DDIMInversion(Checked):
    """x_t = alpha_t (x_s - sigma_s eps)/alpha_s + sigma_t eps, from s up to t, over the grid's times in ascending order (DDIM sec. 4.3).

    `x` is a clean image, the last state the noise at times[0]. DDIM(0) would come down from x_t with eps(x_t, t), which is not known yet:
    eps(x_s, t) stands for it (diffusers' DDIMInverse), and each of `refinements` puts the x_t just found in its place (a fixed-point
    iteration, one more call each), towards an exact round trip."""

    refinements: Natural = 0

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        for s, t in pairwise(times.flip(0)):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = denoise.schedule(s), denoise.schedule(t)
            x_s = x
            for _ in range(1 + self.refinements):
                estimate = denoise(x, t)
                x = alpha_t / alpha_s * (x_s - sigma_s * estimate.eps) + sigma_t * estimate.eps
            yield State(x, estimate.x0, t)
