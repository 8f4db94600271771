"""Numbers that say what made them: extractors, float64 statistics over all ranks, reference caches, passports."""

from diffusion.metrics.accuracy import ClassAccuracy
from diffusion.metrics.base import Metric
from diffusion.metrics.distance import FrechetDistance, FrechetInfinity, SpatialFrechetDistance
from diffusion.metrics.extractors import DigitsClassifier, DINOv2, Extractor, Function, InceptionV3, Pixels, ResNet56, TorchScript
from diffusion.metrics.features import FeatureMetric, Features, FeatureStore, RowMetric
from diffusion.metrics.frechet import Gaussian, Moments, frechet_distance
from diffusion.metrics.inception_score import InceptionScore, inception_scores
from diffusion.metrics.intervals import standard_errors
from diffusion.metrics.kernel import KernelDistance, mmd2
from diffusion.metrics.likelihood import BitsPerDimension, FlowBits, VariationalBits
from diffusion.metrics.memorization import Memorization
from diffusion.metrics.neighbours import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from diffusion.metrics.pairs import PSNR, SSIM, ReconstructionDistance
from diffusion.metrics.perceptual import LPIPS
from diffusion.metrics.prompts import PromptAccuracy
from diffusion.metrics.reference import reference_features, reference_moments
from diffusion.metrics.sliced import SlicedWasserstein
from diffusion.metrics.statistics import Statistics, read_statistics, write_statistics
from diffusion.passport import Passport, code_version, write_metrics

__all__ = [
    "LPIPS",
    "PSNR",
    "SSIM",
    "BitsPerDimension",
    "ClassAccuracy",
    "DINOv2",
    "DensityCoverage",
    "DigitsClassifier",
    "Extractor",
    "FeatureMetric",
    "FeatureStore",
    "Features",
    "FlowBits",
    "FrechetDistance",
    "FrechetInfinity",
    "Function",
    "Gaussian",
    "InceptionScore",
    "InceptionV3",
    "KernelDistance",
    "Memorization",
    "Metric",
    "Moments",
    "Passport",
    "Pixels",
    "PrecisionRecall",
    "PromptAccuracy",
    "ReconstructionDistance",
    "ResNet56",
    "RowMetric",
    "SlicedWasserstein",
    "SpatialFrechetDistance",
    "Statistics",
    "TorchScript",
    "VariationalBits",
    "code_version",
    "density_coverage",
    "frechet_distance",
    "inception_scores",
    "mmd2",
    "precision_recall",
    "read_statistics",
    "reference_features",
    "reference_moments",
    "standard_errors",
    "write_metrics",
    "write_statistics",
]
