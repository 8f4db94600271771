"""A discriminator of patches."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from torch import Tensor, nn

from diffusion.networks.blocks import group_norm
from diffusion.support.ranges import Few, require
from diffusion.support.sizes import height_and_width

SLOPE = 0.2  # of leaky ReLUs


class PatchDiscriminator(nn.Module):
    """Whether each patch of a picture is real (Isola et al. 2017, 1611.07004): x [b, c, h, w] -> logits [b, 1, h', w'].

    4x4 convolutions, the first `layers` of stride 2. Its norms are over groups of channels of one picture and not over the batch, so that
    what it says of a picture does not depend on the others, nor on how a step is dealt to devices.

    Args:
        in_channels: channels of the pictures.
        image_size: their side, or [height, width].
        channels: width of the first convolution, doubled by each further one up to eight times.
        layers: convolutions of stride 2; None: 3, or as many as leave the last two convolutions their 3 pixels.

    Raises:
        ValueError: for more layers than the pictures' size allows."""

    def __init__(self, in_channels: Few = 3, image_size: Few | Sequence[Few] = 32, channels: Few = 64, layers: Few | None = None) -> None:
        require(self, locals())
        super().__init__()
        side = min(height_and_width(image_size))
        layers = layers or max(1, min(3, int(log2(side / 3))))
        if side < 3 * 2**layers:
            raise ValueError(f"A discriminator with layers={layers} needs pictures of at least {3 * 2**layers} pixels: these have {side}.")
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for i, (before, width) in enumerate(pairwise(widths)):
            stride = 2 if i < len(widths) - 2 else 1
            parts += [nn.Conv2d(before, width, 4, stride=stride, padding=1), group_norm(width), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
