"""Guidance: Denoisers made of Denoisers. Each wraps a denoiser, changes its (x_0, eps), and is called like it, so they nest.

Only x_0 and eps are ever changed; a learned variance passes through from the conditional model.
"""

from diffusion.guidance.base import Guidance
from diffusion.guidance.classifier import Classifier, ClassifierMean
from diffusion.guidance.contrast import Autoguidance, CFGPlusPlus, ClassifierFree, Unconditional
from diffusion.guidance.correct import Clip, DynamicThreshold, Interval, Rescale
from diffusion.guidance.doubts import doubts

__all__ = [
    "Autoguidance",
    "CFGPlusPlus",
    "Classifier",
    "ClassifierFree",
    "ClassifierMean",
    "Clip",
    "DynamicThreshold",
    "Guidance",
    "Interval",
    "Rescale",
    "Unconditional",
    "doubts",
]
