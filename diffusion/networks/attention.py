"""The U-Net's attention blocks: over pixels, over a context, over channels. Each is called as block(x, given), as every block is."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffusion.networks.blocks import Norm, added, group_norm, zero
from diffusion.networks.embedding import Given


def pixels_of(x: Tensor) -> Tensor:
    """[b, c, h, w] -> [b, h w, c]: a view in channels_last, and the layout that the fused attention kernels ask for."""
    return x.flatten(2).transpose(1, 2)


def image_of(pixels: Tensor, like: Tensor) -> Tensor:
    """[b, h w, c] -> [b, c, h, w], the inverse of pixels_of."""
    return pixels.transpose(1, 2).unflatten(2, like.shape[2:])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V in each head: q [b, n, c], k and v [b, m, c] -> [b, n, c]. With `mask`, bool that broadcasts to
    [b, heads, n, m], only what it is true of is looked at."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


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
        rescale: see `added`.
        norm: makes the norm before it.

    Raises:
        ValueError: if the channels do not divide into heads.
    """

    def __init__(
        self, channels: int, heads: int = 1, head_channels: int | None = None, rescale: bool = False, norm: Norm = group_norm
    ) -> None:
        super().__init__()
        self.heads, self.rescale = count_heads(channels, heads, head_channels), rescale
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        q, k, v = self.qkv(pixels_of(self.norm(x))).chunk(3, dim=-1)
        return added(x, image_of(self.out(attend(q, k, v, self.heads)), x), self.rescale)


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
        k, v = self.kv(context).chunk(2, dim=-1)
        return self.out(attend(self.q(x), k, v, self.heads))


class CrossAttention(nn.Module):
    """Each pixel looks at all vectors of the context; added to the input. Args, Raises: as SelfAttention; context_channels is d."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int = 1,
        head_channels: int | None = None,
        rescale: bool = False,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = norm(channels)
        self.look = Look(channels, context_channels, count_heads(channels, heads, head_channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return added(x, image_of(self.look(pixels_of(self.norm(x)), given.context), x), self.rescale)


class ClassAttention(nn.Module):
    """Attention between channels that the class determines: softmax_j(q_i k_j) with q, k = W c, applied to the image and added to it.

    As Mongaras 2023 describes it: an attention matrix made from class vectors that attends to the image. (His code sums the matrix over
    the axis of its softmax, which leaves the image as it was; here it is applied.) A channel's query is one number, so the scale
    1 / sqrt(d) is 1."""

    def __init__(self, channels: int, embedding_channels: int, rescale: bool = False, norm: Norm = group_norm) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = norm(channels)
        self.qk = nn.Linear(embedding_channels, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def matrix(self, given: Given) -> Tensor:
        """[b, c, c]; each row sums to 1."""
        q, k = self.qk(given.classes).chunk(2, dim=-1)
        return torch.softmax(q[:, :, None] * k[:, None, :], dim=-1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = pixels_of(self.norm(x)) @ self.matrix(given).mT.to(x.dtype)
        return added(x, image_of(self.out(h), x), self.rescale)


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
