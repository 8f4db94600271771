"""Networks that turn uint8 images into feature vectors: each is a class made as `Extractor(weights, cache)`."""

from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.extractors.digits import DigitsClassifier
from diffusion.metrics.extractors.dinov2 import DINOv2
from diffusion.metrics.extractors.foreign import Function, TorchScript
from diffusion.metrics.extractors.inception import InceptionV3
from diffusion.metrics.extractors.pixels import Pixels
from diffusion.metrics.extractors.resnet56 import ResNet56

__all__ = ["DINOv2", "DigitsClassifier", "Extractor", "Function", "InceptionV3", "Pixels", "ResNet56", "TorchScript"]
