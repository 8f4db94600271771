"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, eps ~ N(0, I), with t in [0, 1] (0 is data, 1 is noise).

A schedule is a map from t to the log signal-to-noise ratio, lambda = log(alpha^2 / sigma^2), and from lambda to (alpha, sigma).
All arithmetic is in float64; the answer has t's dtype. At t = 0 every schedule has sigma = 0 exactly.
"""

from diffusion.schedules.base import Exploding, Schedule
from diffusion.schedules.continuous import EDM, VESDE, VPSDE, Flow, SubVP
from diffusion.schedules.discrete import VE, Betas, Cosine, Discrete, Linear, Quadratic, ScaledLinear, Sigmoid

__all__ = [
    "EDM",
    "VE",
    "VESDE",
    "VPSDE",
    "Betas",
    "Cosine",
    "Discrete",
    "Exploding",
    "Flow",
    "Linear",
    "Quadratic",
    "ScaledLinear",
    "Schedule",
    "Sigmoid",
    "SubVP",
]
