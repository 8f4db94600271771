"""Samplers: from noise to data along a grid of times. `sampler(denoise, x, times, noise) -> Iterator[State]`.

`denoise` is any callable (x, t) -> Estimate with a `.schedule`; `x` is the state at times[0]; `times` descends to 0. Every step
yields a State, and the last one is the sample. A sampler is a frozen dataclass: all memory of a run is local to the call.
"""

from diffusion.samplers.adaptive import RK45, DPMAdaptive
from diffusion.samplers.ancestral import DDIM, DDPM, Euler, EulerAncestral
from diffusion.samplers.base import State, last
from diffusion.samplers.dpm_solver import DPMSolver, DPMSolverPP
from diffusion.samplers.inversion import DDIMInversion
from diffusion.samplers.langevin import Langevin, PredictorCorrector
from diffusion.samplers.multistep import DEIS, DPMPP2M, DPMPP3M, IPNDM, LMS, PNDM
from diffusion.samplers.ode import DPM2, EDM, Heun
from diffusion.samplers.stochastic import DPMPP2MSDE, DPMPP3MSDE, DPMPPSDE, DPM2Ancestral, DPMPP2SAncestral
from diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "DPMPP2M",
    "DPMPP2MSDE",
    "DPMPP3M",
    "DPMPP3MSDE",
    "DPMPPSDE",
    "EDM",
    "IPNDM",
    "LMS",
    "PNDM",
    "RK45",
    "DDIMInversion",
    "DPM2Ancestral",
    "DPMAdaptive",
    "DPMPP2SAncestral",
    "DPMSolver",
    "DPMSolverPP",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Langevin",
    "PredictorCorrector",
    "State",
    "UniPC",
    "last",
]
