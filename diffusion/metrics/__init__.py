"""Numbers that say what made them: extractors, float64 statistics over all ranks, reference caches, passports."""

from diffusion.metrics.distance import FrechetDistance
from diffusion.metrics.extractors import DigitsClassifier, Extractor, InceptionV3, ResNet56
from diffusion.metrics.frechet import Moments, frechet_distance
from diffusion.metrics.passport import Passport, code_version, write_metrics
from diffusion.metrics.reference import reference_moments

__all__ = [
    "DigitsClassifier",
    "Extractor",
    "FrechetDistance",
    "InceptionV3",
    "Moments",
    "Passport",
    "ResNet56",
    "code_version",
    "frechet_distance",
    "reference_moments",
    "write_metrics",
]
