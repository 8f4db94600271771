"""Samplers: from noise to data along a grid of times. `sampler(denoise, x, times, noise) -> Iterator[State]`.

`denoise` is any callable (x, t) -> Estimate with a `.schedule`; `x` is the state at times[0]; `times` descends to 0. Every step
yields a State, and the last one is the sample. A sampler is a frozen dataclass: all memory of a run is local to the call.
"""

from diffusion.samplers.ancestral import DDIM, DDPM, Euler, EulerAncestral
from diffusion.samplers.base import State, last
from diffusion.samplers.langevin import Langevin, PredictorCorrector
from diffusion.samplers.stochastic import DPMPP2MSDE, DPMPP3MSDE, DPMPPSDE, DPM2Ancestral, DPMPP2SAncestral

__all__ = [
    "DDIM",
    "DDPM",
    "DPMPP2MSDE",
    "DPMPP3MSDE",
    "DPMPPSDE",
    "DPM2Ancestral",
    "DPMPP2SAncestral",
    "Euler",
    "EulerAncestral",
    "Langevin",
    "PredictorCorrector",
    "State",
    "last",
]
