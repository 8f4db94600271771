"""The details in which published U-Nets differ and that no paper mentions, so that each of them can be loaded into ours."""

from dataclasses import dataclass

from torch import nn

from diffusion.networks.blocks import group_norm
from diffusion.networks.embedding import FourierTimeEmbedding, TimeEmbedding
from diffusion.support.ranges import Checked, Few, Positive, Share


@dataclass(frozen=True)
class Details(Checked):
    """What a U-Net's code decides beside its description. The defaults are DDPM's, which DDPM++ and NCSN++ share.

    | | groups | eps | shift | cosines_first | symmetric |
    |---|---|---|---|---|---|
    | Improved DDPM, guided diffusion | 32 | 1e-5 | 0 | true | true |
    | ADM as in EDM's code | null | 1e-5 | 0 | true | |
    | diffusers' UNet2DModel | norm_num_groups | norm_eps | freq_shift | flip_sin_to_cos | downsample_padding = 1 |

    groups: of every GroupNorm; null for `group_norm`'s rule.
    eps: of every GroupNorm.
    shift: of the frequencies of the time's sinusoid, see `sinusoidal`.
    cosines_first: in the sinusoid; else its sines come first.
    label_scale: what the label is multiplied by before its sinusoid is made: 1000/T where it counts as if there were 1000 time steps.
    time_channels: width of the sinusoid, or the number of Fourier frequencies; null for the network's `channels`.
    class_first: the class is added to the sinusoid, before the perceptron, and not after it (EDM's DDPM++ and NCSN++).
    stem_channels: width of the first convolution; null for that of the first level.
    symmetric: convolutions of stride 2 are padded by one at all sides, and not at the right and below."""

    groups: Few | None = None
    eps: Positive = 1e-6
    shift: Share = 1.0
    cosines_first: bool = False
    label_scale: Positive = 1.0
    time_channels: Few | None = None
    class_first: bool = False
    stem_channels: Few | None = None
    symmetric: bool = False

    def norm(self, channels: int) -> nn.GroupNorm:
        """The norm of a layer of this width. Raises ValueError if the groups do not divide it."""
        return group_norm(channels, self.groups, self.eps)

    def time(self, channels: int, embedding_channels: int, fourier_scale: float | None) -> TimeEmbedding:
        """The time embedding of a network of this width. Raises ValueError for a width that no sinusoid has."""
        width = self.time_channels or channels
        if width % 2 or width < 4:
            raise ValueError(f"channels must be even and at least 4, for the time embedding: it is {width}.")
        if fourier_scale is not None:
            return FourierTimeEmbedding(width, embedding_channels, fourier_scale)
        return TimeEmbedding(width, embedding_channels, self.shift, self.cosines_first, self.label_scale)
