"""Networks that turn uint8 images into feature vectors: each is a class made as `Extractor(weights, cache)`."""

from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.extractors.digits import DigitsClassifier
from diffusion.metrics.extractors.inception import InceptionV3
from diffusion.metrics.extractors.resnet56 import ResNet56

__all__ = ["DigitsClassifier", "Extractor", "InceptionV3", "ResNet56"]
