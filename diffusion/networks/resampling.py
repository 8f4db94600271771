"""The parts of the U-Net that halve or double an image's sides."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

from diffusion.networks.embedding import Given


class Smooth(nn.Module):
    """Resampling by two with the filter [1, 3, 3, 1] in both directions, zeros outside the image (SDE app. H.1, after StyleGAN 2)."""

    kernel: Tensor

    def __init__(self, up: bool) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.up = up
        # Eighths and quarters: exact in any floating-point type. Each of the four pixels that one becomes is given a full sum of weights.
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None] * (4 if up else 1), persistent=False)

    def filtered(self, x: Tensor, stride: int, padding: int) -> Tensor:
        """x through the filter, each channel by itself."""
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return (conv_transpose2d if self.up else conv2d)(x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.filtered(x, stride=2, padding=1)


class SmoothDownsample(nn.Module):
    """The filter [1, 3, 3, 1], then a 3x3 convolution of stride 2: from one level of NCSN++'s input pyramid to the next (SDE app. H.1)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.smooth, self.conv = Smooth(up=False), nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.smooth.filtered(x, stride=1, padding=2))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded at the right and below: TensorFlow's SAME, as DDPM was trained. `symmetric`: at all sides."""

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if symmetric else (0, 1, 0, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(pad(x, self.padding))


class Upsample(nn.Module):
    """Each pixel becomes four alike, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
