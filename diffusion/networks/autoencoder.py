"""Autoencoders: pictures to latents of a fraction of their sides, and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from diffusion.networks.attention import SelfAttention
from diffusion.networks.blocks import Chain, ResidualBlock, group_norm, silu
from diffusion.networks.embedding import UNTOLD
from diffusion.networks.resampling import Downsample, Upsample
from diffusion.support.ranges import Few, NonNegative, require
from diffusion.support.sizes import height_and_width
from diffusion.typing import Noise, per_sample_mean

LOGVAR = -30.0, 20.0  # of a posterior: standard deviations from 3e-7 to 2e4


class Autoencoded(NamedTuple):
    """What an autoencoder makes of pictures: themselves again, x [b, c, h, w], and penalties [b] of their latents, by name."""

    x: Tensor
    penalties: dict[str, Tensor]


class ConvolutionalAutoencoder(nn.Module, ABC):
    """The encoder and decoder of Rombach et al. 2022 (2112.10752, app. E.1) made of the U-Net's blocks; a subclass says what lies between.

    Level i has channels * multipliers[i] channels at 1/2^i of the sides and `res_blocks` residual blocks, one more on the way back; where
    the sides are shortest stand, on both ways, a residual block, self-attention and another. Sides that f = 2^(levels - 1) does not divide
    are padded at the right and below by their last pixels, and `forward` cuts what it makes to the picture's size.

    Args:
        in_channels: channels of the pictures.
        image_size: the side of the pictures, or [height, width]; only `multipliers` may follow from it.
        channels: width of the first convolution.
        multipliers: width of each level in units of channels; None: [1, 2], so that f = 2, for sides below 16 pixels, and [1, 2, 4] above.
        res_blocks: residual blocks of each level.
        latent_channels: channels of the latents.
        heads: heads of the attention.

    Raises:
        ValueError: for no levels, or channels that do not divide into heads."""

    outputs: ClassVar[int]  # numbers that the encoder says of each latent

    def __init__(
        self,
        in_channels: Few = 3,
        image_size: Few | Sequence[Few] = 32,
        channels: Few = 32,
        multipliers: Sequence[Few] | None = None,
        res_blocks: Few = 1,
        latent_channels: Few = 4,
        heads: Few = 1,
    ) -> None:
        require(self, locals())
        super().__init__()
        if multipliers is None:
            multipliers = (1, 2) if min(height_and_width(image_size)) < 16 else (1, 2, 4)
        if not multipliers:
            raise ValueError("network.multipliers is empty: say one number for each level, such as [1,2].")
        widths, said = [channels * multiplier for multiplier in multipliers], self.outputs * latent_channels
        self.factor, self.latent_channels = 2 ** (len(widths) - 1), latent_channels
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = Chain([_layer(widths[0], widths[0], res_blocks)])
        for before, width in pairwise(widths):
            self.down.extend([Downsample(before), _layer(before, width, res_blocks)])
        self.down.append(_middle(widths[-1], heads))
        self.norm, self.out = group_norm(widths[-1]), nn.Conv2d(widths[-1], said, 3, padding=1)
        self.latents, self.unlatents = nn.Conv2d(said, said, 1), nn.Conv2d(latent_channels, latent_channels, 1)
        self.back = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.up = Chain([_middle(widths[-1], heads), _layer(widths[-1], widths[-1], res_blocks + 1)])
        for before, width in pairwise(reversed(widths)):
            self.up.extend([Upsample(before), _layer(before, width, res_blocks + 1)])
        self.last_norm, self.last = group_norm(widths[0]), nn.Conv2d(widths[0], in_channels, 3, padding=1)

    def encoded(self, x: Tensor) -> Tensor:
        """What the encoder says of x [b, c, h, w]: [b, outputs * latent_channels, ceil(h/f), ceil(w/f)]."""
        right, below = -x.shape[-1] % self.factor, -x.shape[-2] % self.factor
        h = self.down(self.stem(pad(x, (0, right, 0, below), mode="replicate") if right or below else x), UNTOLD)
        return self.latents(self.out(silu(self.norm(h))))

    @abstractmethod
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log variance of the latents of x [b, c, h, w], each [b, latent_channels, ceil(h/f), ceil(w/f)]."""

    def decode(self, z: Tensor) -> Tensor:
        """z [b, latent_channels, h', w'] -> x [b, c, f h', f w']."""
        h = self.up(self.back(self.unlatents(z)), UNTOLD)
        return self.last(silu(self.last_norm(h)))

    @abstractmethod
    def forward(self, x: Tensor, noise: Noise = torch.randn_like) -> Autoencoded:
        """Pictures x [b, c, h, w] encoded, what is random drawn by `noise`, and decoded again."""


class KLAutoencoder(ConvolutionalAutoencoder):
    """The encoder says a normal posterior q(z|x) = N(mu, diag e^logvar), logvar within [-30, 20], of which the decoder is given a draw.

    Its penalty "kl" is KL(q || N(0, I)) = 1/2 sum(mu^2 + e^logvar - 1 - logvar), in nats. Args, Raises: as ConvolutionalAutoencoder."""

    outputs = 2

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoded(x).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR)

    def forward(self, x: Tensor, noise: Noise = torch.randn_like) -> Autoencoded:
        mean, logvar = (moment.to(torch.promote_types(moment.dtype, torch.float32)) for moment in self.moments(x))
        kl = (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2
        return Autoencoded(like(self.decode(mean + (logvar / 2).exp() * noise(mean)), x), {"kl": kl})


class VQAutoencoder(ConvolutionalAutoencoder):
    """Each latent vector is put on the nearest of `codes`, which are learned: e = argmin_k |z_e - e_k| (van den Oord 2017, 1711.00937).

    The latents are z_e, and `decode` looks for the code, so that a diffusion's latents are continuous and what it makes is put on the codes
    (LDM, sec. 3.3). The gradient passes the search as if that were the identity. The penalty "vq" is the mean over the latents' elements of
    (sg[z_e] - e)^2 + commitment (z_e - sg[e])^2, times the number of the picture's elements: beside a reconstruction that is a sum over
    these it weighs what it does in LDM's code, which takes the mean of both. Args, Raises: as ConvolutionalAutoencoder."""

    outputs = 1

    def __init__(
        self,
        in_channels: Few = 3,
        image_size: Few | Sequence[Few] = 32,
        channels: Few = 32,
        multipliers: Sequence[Few] | None = None,
        res_blocks: Few = 1,
        latent_channels: Few = 4,
        heads: Few = 1,
        codes: Few = 512,
        commitment: NonNegative = 0.25,
    ) -> None:
        super().__init__(in_channels, image_size, channels, multipliers, res_blocks, latent_channels, heads)
        require(self, locals())
        self.codes, self.commitment = nn.Embedding(codes, latent_channels), commitment
        nn.init.uniform_(self.codes.weight, -1 / codes, 1 / codes)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoded(x)
        return z, torch.full_like(z, LOGVAR[0])

    def nearest(self, z: Tensor) -> Tensor:
        """The code nearest to each vector of z [b, latent_channels, h', w'], in its shape; its gradient goes to the codes alone."""
        vectors, codes = z.detach().movedim(1, -1).to(self.codes.weight), self.codes.weight.detach()
        with torch.autocast(z.device.type, enabled=False):  # in bfloat16 neighbours could not be told apart
            apart = codes.square().sum(1) - 2 * vectors @ codes.mT  # and |z_e|^2, the same for all codes
        return embedding(apart.argmin(-1), self.codes.weight).movedim(-1, 1)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(passed(z, self.nearest(z)))

    def forward(self, x: Tensor, noise: Noise = torch.randn_like) -> Autoencoded:
        z = self.encoded(x)
        code = self.nearest(z)
        vq = x[0].numel() * per_sample_mean((z.detach() - code) ** 2 + self.commitment * (z - code.detach()) ** 2)
        return Autoencoded(like(super().decode(passed(z, code)), x), {"vq": vq})


def passed(z: Tensor, code: Tensor) -> Tensor:
    """The code, with the gradient of z (the straight-through estimator)."""
    return z + (code - z).detach()


def like(x: Tensor, picture: Tensor) -> Tensor:
    """What was decoded, cut to the size of the picture that was encoded."""
    return x[..., : picture.shape[-2], : picture.shape[-1]]


def _layer(before: int, width: int, res_blocks: int) -> Chain:
    return Chain(ResidualBlock(width if i else before, width) for i in range(res_blocks))


def _middle(width: int, heads: int) -> Chain:
    return Chain([ResidualBlock(width, width), SelfAttention(width, heads), ResidualBlock(width, width)])
