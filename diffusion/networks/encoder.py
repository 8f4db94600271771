"""The way down of a U-Net as a classifier of noisy images."""

from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion.networks.blocks import group_norm, zero
from diffusion.networks.embedding import Given
from diffusion.networks.unet import UNet


class Encoder(nn.Module):
    """F(x_t, label) -> logits: a U-Net's way down and its middle, then the mean over pixels (ADM sec. 4, whose pooling is by attention).

    It is built from a U-Net, so that every U-Net's configuration makes a classifier too; its way up, its classes and its input pyramid are
    left out.

    Args:
        unet: gives its time embedding, stem, way down and middle.
        num_classes: number of logits, at least 2.

    Raises:
        ValueError: if the network is not a U-Net, or there are not at least two classes to tell apart."""

    def __init__(self, unet: UNet, num_classes: int) -> None:
        super().__init__()
        if not isinstance(unet, UNet):
            raise ValueError(f"A classifier is made of a U-Net's way down, and a {type(unet).__name__} has none: choose another network.")
        if num_classes < 2:
            raise ValueError(f"A classifier needs a data set with at least two classes, and this one has {num_classes}.")
        self.time, self.stem, self.down, self.middle = unet.time, unet.stem, unet.down, unet.middle
        width, self.context_channels = unet.widths[-1], unet.context_channels
        self.norm, self.out = group_norm(width), zero(nn.Linear(width, num_classes))

    def forward(self, x_t: Tensor, label: Tensor) -> Tensor:
        """x_t [b, c, h, w], label [b] float -> [b, num_classes]."""
        embedding, x = silu(self.time(label)), self.stem(x_t)
        given = Given(embedding, embedding, x.new_zeros(len(x), 1, self.context_channels))
        for block in [*self.down, self.middle]:
            x = block(x, given)
        return self.out(silu(self.norm(x)).mean((2, 3)))
