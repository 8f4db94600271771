"""The U-Net of the DDPM, Improved DDPM and ADM family, from one class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion.networks.blocks import Chain, Downsample, ResidualBlock, SelfAttention, Upsample, group_norm, zero
from diffusion.networks.embedding import ClassEmbedding, TimeEmbedding


class UNet(nn.Module):
    """F(x_t, label, cond): a U-Net whose every block sees the time and the class.

    One description covers Ho et al. 2020 (2006.11239, app. B), Nichol & Dhariwal 2021 (2102.09672, app. A) and
    Dhariwal & Nichol 2021 (2105.05233, sec. 3). Where their code differs in what no paper speaks of, DDPM's is kept:
    sines before cosines, stride-2 convolutions padded at the right and below, GroupNorm's eps of 1e-6.

    Level i has channels * multipliers[i] channels at resolution image_size / 2^i. Self-attention always stands
    in the middle, at the lowest resolution.

    Args:
        in_channels: channels of x_t.
        out_channels: channels of the output; twice in_channels where a variance is learned too.
        image_size: height and width of x_t in pixels.
        channels: width of the first convolution; even and at least 4.
        multipliers: width of each level in units of channels.
        res_blocks: residual blocks of each level on the way down; one more on the way up.
        attention: resolutions in pixels at which self-attention follows each residual block.
        heads: heads of each self-attention, unless head_channels is given.
        head_channels: channels of a head; the number of heads is then width / head_channels.
        num_classes: number of classes, to which a learned null class is added; 0 is an unconditional network.
        dropout: dropout probability in the residual blocks.
        scale_shift: condition by scale and shift after the norm (AdaGN), or by adding before it (DDPM).
        resample_in_resblock: resample inside residual blocks (ADM), or by convolutions.
        embedding_channels: width of the time and class embedding, 4 * channels if None.

    Raises:
        ValueError: if image_size does not halve as often as there are levels, an attention resolution is never
            reached, channels do not divide into heads, or channels is odd or below 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        image_size: int = 32,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        res_blocks: int = 2,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        head_channels: int | None = None,
        num_classes: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample_in_resblock: bool = False,
        embedding_channels: int | None = None,
    ) -> None:
        super().__init__()
        if channels % 2 or channels < 4:
            raise ValueError(f"channels must be even and at least 4, for the time embedding: it is {channels}.")
        resolutions = _resolutions(image_size, len(multipliers), attention)
        widths = [int(channels * multiplier) for multiplier in multipliers]
        levels = list(zip(widths, resolutions, strict=True))
        embedding_channels = embedding_channels or 4 * channels
        blocks = _Blocks(
            partial(ResidualBlock, embedding_channels=embedding_channels, dropout=dropout, scale_shift=scale_shift),
            partial(SelfAttention, heads=heads, head_channels=head_channels),
            frozenset(attention),
            resample_in_resblock,
        )

        self.time = TimeEmbedding(channels, embedding_channels)
        self.classes = ClassEmbedding(num_classes, embedding_channels) if num_classes else None
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down, skips = _down_path(blocks, levels, res_blocks)
        self.middle = blocks.middle(widths[-1])
        self.up = _up_path(blocks, levels, res_blocks, skips)
        self.norm = group_norm(widths[0])
        self.out = zero(nn.Conv2d(widths[0], out_channels, 3, padding=1))

    def forward(self, x_t: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's raw prediction.

        Args:
            x_t: [b, in_channels, h, w], the noisy image.
            label: [b] float, the step: 0 .. T - 1 for a discrete schedule, whatever number stands for the time else.
            cond: [b] long, the classes; a negative one is the null class, and None makes all of them null.

        Returns:
            [b, out_channels, h, w].

        Raises:
            ValueError: if an unconditional network is given classes.
        """
        embedding = silu(self._embed(label, cond))
        x = self.stem(x_t)
        skips = [x]
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(silu(self.norm(x)))

    def _embed(self, label: Tensor, cond: Tensor | None) -> Tensor:
        if self.classes is not None:
            return self.time(label) + self.classes(cond)
        if cond is not None:
            raise ValueError("This U-Net is unconditional (num_classes=0) but was given classes: set num_classes.")
        return self.time(label)


@dataclass(frozen=True)
class _Blocks:
    """How one U-Net makes its blocks."""

    residual: Callable[..., nn.Module]
    attend: Callable[[int], nn.Module]
    attention: frozenset[int]
    resample_in_resblock: bool

    def layer(self, in_width: int, width: int, resolution: int) -> Chain:
        attends = [self.attend(width)] if resolution in self.attention else []
        return Chain([self.residual(in_width, width), *attends])

    def middle(self, width: int) -> Chain:
        return Chain([self.residual(width, width), self.attend(width), self.residual(width, width)])

    def shrink(self, width: int) -> nn.Module:
        if self.resample_in_resblock:
            return self.residual(width, width, resample=nn.AvgPool2d(2))
        return Downsample(width)

    def grow(self, width: int) -> nn.Module:
        if self.resample_in_resblock:
            return self.residual(width, width, resample=nn.Upsample(scale_factor=2.0, mode="nearest"))
        return Upsample(width)


def _down_path(blocks: _Blocks, levels: list[tuple[int, int]], res_blocks: int) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the widths it leaves for the way up: the stem's and one for each of its blocks."""
    path, skips = nn.ModuleList(), [levels[0][0]]
    for i, (width, resolution) in enumerate(levels):
        if i > 0:
            path.append(blocks.shrink(skips[-1]))
            skips.append(skips[-1])
        for _ in range(res_blocks):
            path.append(blocks.layer(skips[-1], width, resolution))
            skips.append(width)
    return path, skips


def _up_path(blocks: _Blocks, levels: list[tuple[int, int]], res_blocks: int, skips: list[int]) -> nn.ModuleList:
    """The way up: each block is given the newest output that the way down left, beside its own input."""
    path, in_width, skips = nn.ModuleList(), levels[-1][0], list(skips)
    for i, (width, resolution) in reversed(list(enumerate(levels))):
        for _ in range(res_blocks + 1):
            path.append(blocks.layer(in_width + skips.pop(), width, resolution))
            in_width = width
        if i > 0:
            path[-1].append(blocks.grow(width))
    return path


def _resolutions(image_size: int, levels: int, attention: Sequence[int]) -> list[int]:
    """The resolution of each level, or a ValueError that says what does not fit."""
    halvings = levels - 1
    if image_size % 2**halvings:
        raise ValueError(
            f"image_size {image_size} is not divisible by {2**halvings}, which {levels} levels (multipliers) need: "
            "use fewer multipliers or another image size."
        )
    resolutions = [image_size // 2**level for level in range(levels)]
    unreached = sorted(set(attention) - set(resolutions))
    if unreached:
        raise ValueError(f"attention at {unreached} is never reached: the resolutions there are {resolutions}.")
    return resolutions
