"""Networks: functions of a noisy image, a time label and a condition. They know no schedule."""

from diffusion.networks.encoder import Encoder
from diffusion.networks.unet import UNet

__all__ = ["Encoder", "UNet"]
