"""Networks: functions of a noisy image or vector, a time label and a condition. They know no schedule."""

from diffusion.networks.autoencoder import KLAutoencoder, VQAutoencoder
from diffusion.networks.dit import DiT
from diffusion.networks.encoder import Encoder
from diffusion.networks.mlp import MLP
from diffusion.networks.text import TextNetwork, TextTransformer
from diffusion.networks.unet import UNet

__all__ = ["MLP", "DiT", "Encoder", "KLAutoencoder", "TextNetwork", "TextTransformer", "UNet", "VQAutoencoder"]
