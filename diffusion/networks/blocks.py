"""The parts of the U-Net. Every block is called as block(x, embedding), so that any may stand in any place.

x is [b, c, h, w]; embedding is [b, e], the sum of the time and class embeddings after its SiLU. Blocks that need no
embedding take it and leave it.
"""

from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu


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


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioned norm, SiLU, dropout, conv; added to the input (DDPM, app. B).

    `resample`, if given, acts on both branches: BigGAN's up- and down-sampling block (ADM, sec. 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm = group_norm(in_channels)
        self.resample = resample or nn.Identity()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.condition = (AdaptiveNorm if scale_shift else AdditiveNorm)(out_channels, embedding_channels)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv(self.resample(silu(self.norm(x))))
        h = silu(self.condition(h, embedding))
        return self.skip(self.resample(x)) + self.out(self.dropout(h))


class SelfAttention(nn.Module):
    """Each pixel looks at all pixels: softmax(Q K^T / sqrt(d)) V, added to the input (DDPM app. B; heads: IDDPM, ADM).

    Args:
        channels: width of the input.
        heads: number of heads, unless head_channels is given.
        head_channels: width of a head; the number of heads is then channels / head_channels.

    Raises:
        ValueError: if the channels do not divide into heads.
    """

    def __init__(self, channels: int, heads: int = 1, head_channels: int | None = None) -> None:
        super().__init__()
        if channels % (head_channels or heads):
            what = f"heads of {head_channels} channels" if head_channels else f"{heads} heads"
            raise ValueError(f"{channels} channels do not divide into {what}: change heads, head_channels, channels or multipliers.")
        self.heads = channels // head_channels if head_channels else heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # Pixels before channels: a view in channels_last, and the layout that the fused attention kernels ask for.
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        h = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded at the right and below: TensorFlow's SAME, as DDPM was trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel becomes four alike, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Chain(nn.ModuleList):
    """Blocks one after the other, each given the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x
