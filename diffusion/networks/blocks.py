"""The parts of the U-Net. Every block is called as block(x, given), so that any may stand in any place.

x is [b, c, h, w]; `given` is what the network knows besides: each block takes of it what it needs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, gelu, interpolate, pad, scaled_dot_product_attention, silu

from diffusion.networks.embedding import Given


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over 32 groups as in DDPM, and over fewer where channels are few: at least four channels a group.

    A group of one channel would wipe out that channel's mean, the brightness of an 8x8 image. eps is DDPM's 1e-6.
    """
    most = max(1, min(32, channels // 4))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to 0: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class AdditiveNorm(nn.Module):
    """DDPM's conditioning: GroupNorm(h + W e)."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.project = nn.Linear(embedding_channels, channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(h + self.project(embedding)[:, :, None, None])


class AdaptiveNorm(nn.Module):
    """Scale-shift conditioning, AdaGN: (1 + scale) GroupNorm(h) + shift, [scale, shift] = W e (IDDPM; ADM sec. 3.1)."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.project = nn.Linear(embedding_channels, 2 * channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.norm(h) * (1 + scale) + shift


def join(skip: Tensor, branch: Tensor, rescale: bool) -> Tensor:
    """skip + branch; with `rescale` divided by sqrt(2), which keeps the variance of the sum (SDE app. H.1, after StyleGAN 2)."""
    return (skip + branch) * math.sqrt(0.5) if rescale else skip + branch


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioned norm, SiLU, dropout, conv; added to the input (DDPM, app. B).

    `resample`, if given, acts on both branches: BigGAN's up- and down-sampling block (ADM, sec. 3). The input goes through a 1x1
    convolution where the width changes, and with `project` in any case.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: nn.Module | None = None,
        rescale: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = group_norm(in_channels)
        self.resample = resample or nn.Identity()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.condition = (AdaptiveNorm if scale_shift else AdditiveNorm)(out_channels, embedding_channels)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels and not project else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = self.conv(self.resample(silu(self.norm(x))))
        h = silu(self.condition(h, given.embedding))
        return join(self.skip(self.resample(x)), self.out(self.dropout(h)), self.rescale)


class ConvNeXt(nn.Module):
    """Depthwise 7x7, conditioned norm, 1x1 to four times the width, GELU, 1x1; added to the input (Liu et al. 2022, 2201.03545, fig. 4).

    The norm is the residual block's and carries the time and class, where the paper has a LayerNorm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.condition = (AdaptiveNorm if scale_shift else AdditiveNorm)(in_channels, embedding_channels)
        self.expand = nn.Conv2d(in_channels, 4 * in_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Conv2d(4 * in_channels, out_channels, 1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = gelu(self.expand(self.condition(self.depthwise(x), given.embedding)))
        return join(self.skip(x), self.out(self.dropout(h)), self.rescale)


def pixels_of(x: Tensor) -> Tensor:
    """[b, c, h, w] -> [b, h w, c]: a view in channels_last, and the layout that the fused attention kernels ask for."""
    return x.flatten(2).transpose(1, 2)


def image_of(pixels: Tensor, like: Tensor) -> Tensor:
    """[b, h w, c] -> [b, c, h, w], the inverse of pixels_of."""
    return pixels.transpose(1, 2).unflatten(2, like.shape[2:])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V in each head: q [b, n, c], k and v [b, m, c] -> [b, n, c]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def count_heads(channels: int, heads: int = 1, head_channels: int | None = None) -> int:
    """`heads`, or channels / head_channels where that is given. Raises ValueError if the channels do not divide into heads."""
    if channels % (head_channels or heads):
        what = f"heads of {head_channels} channels" if head_channels else f"{heads} heads"
        raise ValueError(f"{channels} channels do not divide into {what}: change heads, head_channels, or the network's widths.")
    return channels // head_channels if head_channels else heads


class SelfAttention(nn.Module):
    """Each pixel looks at all pixels: softmax(Q K^T / sqrt(d)) V, added to the input (DDPM app. B; heads: IDDPM, ADM).

    Args:
        channels: width of the input.
        heads: number of heads, unless head_channels is given.
        head_channels: width of a head; the number of heads is then channels / head_channels.
        rescale: see `join`.

    Raises:
        ValueError: if the channels do not divide into heads.
    """

    def __init__(self, channels: int, heads: int = 1, head_channels: int | None = None, rescale: bool = False) -> None:
        super().__init__()
        self.heads, self.rescale = count_heads(channels, heads, head_channels), rescale
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = attend(*self.qkv(pixels_of(self.norm(x))).chunk(3, dim=-1), self.heads)
        return join(x, image_of(self.out(h), x), self.rescale)


class Look(nn.Module):
    """Each token looks at all vectors of a context: Q of the tokens, K and V of the context (LDM eq. 5), [b, n, c] -> [b, n, c].

    Keys and values have no bias, so that a context of zeros, however long, is the null context."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [b, n, channels], context [b, m, context_channels]."""
        return self.out(attend(self.q(x), *self.kv(context).chunk(2, dim=-1), self.heads))


class CrossAttention(nn.Module):
    """Each pixel looks at all vectors of the context; added to the input. Args, Raises: as SelfAttention; context_channels is d."""

    def __init__(
        self, channels: int, context_channels: int, heads: int = 1, head_channels: int | None = None, rescale: bool = False
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = group_norm(channels)
        self.look = Look(channels, context_channels, count_heads(channels, heads, head_channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return join(x, image_of(self.look(pixels_of(self.norm(x)), given.context), x), self.rescale)


class ClassAttention(nn.Module):
    """Each channel looks at all channels, and the class says how: softmax_j(q_i k_j) with q, k = W c, applied to the image; added to it.

    As Mongaras 2023 describes it: an attention matrix made from class vectors that attends to the image. (His code sums the matrix over
    the axis of its softmax, which leaves the image as it was; here it is applied.) A channel's query is one number, so the scale
    1 / sqrt(d) is 1."""

    def __init__(self, channels: int, embedding_channels: int, rescale: bool = False) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = group_norm(channels)
        self.qk = nn.Linear(embedding_channels, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def matrix(self, given: Given) -> Tensor:
        """[b, c, c]; each row sums to 1."""
        q, k = self.qk(given.classes).chunk(2, dim=-1)
        return torch.softmax(q[:, :, None] * k[:, None, :], dim=-1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = pixels_of(self.norm(x)) @ self.matrix(given).mT.to(x.dtype)
        return join(x, image_of(self.out(h), x), self.rescale)


class ChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al. 2020, 1910.03151, eq. 9): x * sigmoid(conv1d(mean of x over the pixels)).

    The convolution runs over neighbouring channels; its length is the odd number at or above log2(c) / 2 + 1 / 2, cut to an integer
    (eq. 12, as in their code)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        length = int(math.log2(channels) / 2 + 1 / 2) | 1
        self.conv = nn.Conv1d(1, 1, length, padding=length // 2, bias=False)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None, :]).sigmoid()
        return x * gate[:, 0, :, None, None]


class Smooth(nn.Module):
    """Resampling by two with the filter [1, 3, 3, 1] in both directions, zeros outside the image (SDE app. H.1, after StyleGAN 2)."""

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
    """A 3x3 convolution of stride 2, padded at the right and below: TensorFlow's SAME, as DDPM was trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel becomes four alike, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Chain(nn.ModuleList):
    """Blocks one after the other, each given the same."""

    def forward(self, x: Tensor, given: Given) -> Tensor:
        for block in self:
            x = block(x, given)
        return x
