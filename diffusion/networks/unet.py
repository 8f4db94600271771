"""The U-Net of the DDPM, Improved DDPM and ADM family, from one class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.networks.attention import ChannelAttention, ClassAttention, CrossAttention, SelfAttention
from diffusion.networks.blocks import Chain, ConvNeXt, ResidualBlock, added, silu, zero
from diffusion.networks.details import Details
from diffusion.networks.embedding import ConditionedNetwork, Given
from diffusion.networks.recompute import through
from diffusion.networks.resampling import Downsample, Smooth, SmoothDownsample, Upsample
from diffusion.support.ranges import Few, Multiple, Positive, Share, Some, require
from diffusion.support.sizes import height_and_width


class UNet(ConditionedNetwork):
    """F(x_t, label, cond): a U-Net whose every block sees the time and the condition.

    One description covers Ho et al. 2020 (2006.11239, app. B), Nichol & Dhariwal 2021 (2102.09672, app. A) and
    Dhariwal & Nichol 2021 (2105.05233, sec. 3). Where their code differs in what no paper mentions, `details` says it.

    Level i has channels * multipliers[i] channels at resolution image_size / 2^i, counted along the shorter side of a rectangle. The
    network is convolutional, so it also takes images of another size than it was built for, if its halvings divide their sides;
    attention then stands at the same levels. Each layer is the list of blocks `block`, in the words of Mongaras 2023: res (residual), conv
    (ConvNeXt), atn (self-attention), clsAtn (class attention), chnAtn (efficient channel attention), and ctxAtn (cross-attention to a
    context sequence). DDPM's and ADM's list is [res, atn]; where a context is given and no list looks at it, each atn is followed by a
    ctxAtn, as in LDM's transformer (Rombach et al. 2022, 2112.10752, sec. 3.3). The options from skip_rescale on are those of DDPM++ and
    NCSN++ (Song et al. 2021, 2011.13456, app. H.1, and their code).

    Args:
        in_channels: channels of x_t.
        out_channels: channels of the output; twice in_channels where a variance is learned too.
        image_size: the side of square x_t, or [height, width], in pixels.
        channels: width of the first convolution; even and at least 4.
        multipliers: width of each level in units of channels; fractions are rounded down.
        res_blocks: layers of each level on the way down; one more on the way up.
        block: the blocks of a layer, in order; the first is res or conv, which can change the width.
        middle: the blocks at the lowest resolution, between the ways down and up.
        attention: resolutions in pixels, along the shorter side of image_size, at which the atn and ctxAtn of `block` stand; elsewhere
            they are left out.
        heads: heads of each atn and ctxAtn, unless head_channels is given.
        head_channels: channels of a head; the number of heads is then width / head_channels.
        num_classes: number of classes, to which a learned null class is added; 0 is a network without classes.
        context_channels: width of the vectors of a context sequence, which ctxAtn looks at; 0 is a network without a context.
        pooled: the context's first vector is added to the time embedding too.
        dropout: dropout probability in the residual and ConvNeXt blocks.
        scale_shift: condition by scale and shift after the norm (AdaGN), or by adding before it (DDPM).
        resample_in_resblock: resample inside residual blocks (ADM), or by convolutions.
        embedding_channels: width of the time and class embedding, 4 * channels if None.
        skip_rescale: divide each sum of a block and its input by sqrt(2).
        fir: resample with the filter [1, 3, 3, 1]; needs resample_in_resblock.
        fourier_scale: the time as Gaussian Fourier features of this standard deviation, in cycles to a unit of the label; None for DDPM's.
        project_skip: a 1x1 convolution on the input of each resampling block.
        attention_once: on the way up only the last layer of a level has its atn and ctxAtn.
        input_pyramid: after each halving add x_t, resampled to this level's size and width; the sum is what the next level's is made from.
        checkpointing: keep only each block's input for the gradients, and compute the rest again: less memory, a third more time.
        details: what published networks differ in beside all this; DDPM's if None.

    Raises:
        ValueError: if image_size does not halve as often as there are levels, an attention resolution is never
            reached, channels do not divide into heads, channels is odd or below 4, a block is unknown or out of place, a context
            is set and not looked at or the reverse, or fir is set without resample_in_resblock.
    """

    def __init__(
        self,
        in_channels: Few = 3,
        out_channels: Few = 3,
        image_size: Few | Sequence[Few] = 32,
        channels: Few = 128,
        multipliers: Sequence[Multiple] = (1, 2, 2, 2),
        res_blocks: Few = 2,
        block: Sequence[str] = ("res", "atn"),
        middle: Sequence[str] = ("res", "atn", "res"),
        attention: Sequence[Few] = (16,),
        heads: Few = 1,
        head_channels: Few | None = None,
        num_classes: Some = 0,
        context_channels: Some = 0,
        pooled: bool = False,
        dropout: Share = 0.0,
        scale_shift: bool = True,
        resample_in_resblock: bool = False,
        embedding_channels: Few | None = None,
        skip_rescale: bool = False,
        fir: bool = False,
        fourier_scale: Positive | None = None,
        project_skip: bool = False,
        attention_once: bool = False,
        input_pyramid: bool = False,
        checkpointing: bool = False,
        details: Details | None = None,
    ) -> None:
        require(self, locals())
        resolutions = _resolutions(image_size, len(multipliers), attention)
        embed = embedding_channels or 4 * channels
        details = details or Details()
        time = details.time(channels, embed, fourier_scale)
        super().__init__(time, embed, num_classes, context_channels, pooled, details.class_first)
        if context_channels and "ctxAtn" not in (*block, *middle):
            block, middle = _looking(block), _looking(middle)
        _check_settings(block, middle, context_channels, fir and not resample_in_resblock)

        common = dict(rescale=skip_rescale, norm=details.norm)
        residual = dict(embedding_channels=embed, dropout=dropout, scale_shift=scale_shift, **common)
        looking = dict(heads=heads, head_channels=head_channels, **common)
        make = _makers(residual, looking, context_channels)
        blocks = _Blocks(
            make, tuple(block), frozenset(attention), resample_in_resblock, fir, project_skip, attention_once, details.symmetric
        )
        self.rescale, self.multiple = skip_rescale, 2 ** (len(multipliers) - 1)
        self.details, self.checkpointing = details, checkpointing
        self.widths = [int(channels * multiplier) for multiplier in multipliers]
        levels = list(zip(self.widths, resolutions, strict=True))
        self.stem = nn.Conv2d(in_channels, details.stem_channels or self.widths[0], 3, padding=1)
        self.down, skips = _down_path(blocks, levels, res_blocks, self.stem.out_channels)
        pyramid = pairwise([in_channels, *self.widths[:-1]]) if input_pyramid else ()
        self.pyramid = nn.ModuleList(SmoothDownsample(before, width) for before, width in pyramid)
        self.middle = blocks.chain(middle, self.widths[-1], self.widths[-1])
        self.up = _up_path(blocks, levels, res_blocks, skips)
        self.norm = details.norm(self.widths[0])
        self.out = zero(nn.Conv2d(self.widths[0], out_channels, 3, padding=1))

    @staticmethod
    def fitted(settings: Mapping[str, Any], size: Sequence[int]) -> dict[str, list[int]]:
        """The settings of a U-Net of pictures that make it one of their latents, [height, width]: `multipliers` without the first levels,
        as many as its halvings are too many, and for each resolution of `attention` the nearest below it that is then reached."""
        usual = {name: parameter.default for name, parameter in signature(UNet).parameters.items()}
        multipliers, attention = (list(settings.get(key, usual[key])) for key in ("multipliers", "attention"))
        while len(multipliers) > 1 and any(side % 2 ** (len(multipliers) - 1) for side in size):
            del multipliers[0]
        levels = [min(size) // 2**level for level in range(len(multipliers) or 1)]
        reached = {next((side for side in levels if side <= said), levels[-1]) for said in attention}
        return {"multipliers": multipliers, "attention": sorted(reached, reverse=True)}

    def forward(self, x_t: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """x_t [b, in_channels, h, w], label [b], cond -> [b, out_channels, h, w]: see `ConditionedNetwork`.

        Raises ValueError if the halvings do not divide h and w."""
        if any(side % self.multiple for side in x_t.shape[-2:]):
            raise ValueError(
                f"This U-Net takes images whose height and width are multiples of {self.multiple}, and these are "
                f"{' x '.join(map(str, x_t.shape[-2:]))}: choose another height and width."
            )
        given = self.given(label, cond)
        x, image, pyramid = self.stem(x_t), x_t, iter(self.pyramid)
        skips = [x]
        for block in self.down:
            x = through(self.checkpointing, block, x, given)
            if x.shape[-1] < skips[-1].shape[-1] and self.pyramid:
                x = image = added(next(pyramid)(image), x, self.rescale)
            skips.append(x)
        x = through(self.checkpointing, self.middle, x, given)
        for block in self.up:
            x = through(self.checkpointing, _joined, block, x, skips.pop(), given)
        return self.out(silu(self.norm(x)))


def _joined(block: nn.Module, x: Tensor, skip: Tensor, given: Given) -> Tensor:
    return block(torch.cat([x, skip], dim=1), given)


CHANGE_WIDTH = ("res", "conv")
LOOK_FAR = ("atn", "ctxAtn")  # their cost grows with the square of the pixels, so they stand at chosen resolutions
WORDS = (*CHANGE_WIDTH, *LOOK_FAR, "clsAtn", "chnAtn")


def _looking(words: Sequence[str]) -> list[str]:
    """The blocks with a ctxAtn behind each atn."""
    return [each for word in words for each in ((word, "ctxAtn") if word == "atn" else (word,))]


def _makers(residual: dict, looking: dict, context_channels: int) -> dict[str, Callable[..., nn.Module]]:
    """(in_channels, out_channels) -> block, for each word; `residual` are the settings of res and conv, `looking` of atn and ctxAtn."""
    attending = {key: residual[key] for key in ("embedding_channels", "rescale", "norm")}
    return {
        "res": partial(ResidualBlock, **residual),
        "conv": partial(ConvNeXt, **residual),
        "atn": _keeping(SelfAttention, **looking),
        "clsAtn": _keeping(ClassAttention, **attending),
        "chnAtn": _keeping(ChannelAttention),
        "ctxAtn": _keeping(CrossAttention, context_channels=context_channels, **looking),
    }


def _keeping(block: Callable[..., nn.Module], **settings: object) -> Callable[[int, int], nn.Module]:
    """A maker of a block that keeps the width, called like the makers of blocks that can change it."""
    return lambda in_channels, out_channels: block(out_channels, **settings)


@dataclass(frozen=True)
class _Blocks:
    """The makers of one U-Net's blocks: `make`, by word; the other fields are the U-Net's own settings."""

    make: dict[str, Callable[..., nn.Module]]
    block: tuple[str, ...]
    attention: frozenset[int]
    resample_in_resblock: bool
    fir: bool
    project_skip: bool
    attention_once: bool
    symmetric: bool

    def chain(self, words: Sequence[str], in_width: int, width: int) -> Chain:
        in_widths = [in_width] + [width] * (len(words) - 1)
        return Chain(self.make[word](before, width) for word, before in zip(words, in_widths, strict=True))

    def layer(self, in_width: int, width: int, resolution: int, look: bool = True) -> Chain:
        look = look and resolution in self.attention
        return self.chain([word for word in self.block if look or word not in LOOK_FAR], in_width, width)

    def shrink(self, width: int) -> nn.Module:
        return self.resampling(width, Smooth(up=False) if self.fir else nn.AvgPool2d(2), partial(Downsample, symmetric=self.symmetric))

    def grow(self, width: int) -> nn.Module:
        return self.resampling(width, Smooth(up=True) if self.fir else nn.Upsample(scale_factor=2.0, mode="nearest"), Upsample)

    def resampling(self, width: int, resample: nn.Module, otherwise: Callable[[int], nn.Module]) -> nn.Module:
        if not self.resample_in_resblock:
            return otherwise(width)
        return self.make["res"](width, width, resample=resample, project=self.project_skip)


def _down_path(blocks: _Blocks, levels: list[tuple[int, int]], res_blocks: int, stem: int) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the widths it leaves for the way up: the stem's and one for each of its blocks."""
    path, skips = nn.ModuleList(), [stem]
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
        for layer in range(res_blocks + 1):
            look = layer == res_blocks or not blocks.attention_once
            chain = blocks.layer(in_width + skips.pop(), width, resolution, look)
            path.append(chain)
            in_width = width
        if i > 0:
            chain.append(blocks.grow(width))
    return path


def _resolutions(image_size: int | Sequence[int], levels: int, attention: Sequence[int]) -> list[int]:
    """The resolution of each level along the shorter side, or a ValueError that says what does not fit."""
    if not levels:
        raise ValueError("network.multipliers is empty: say one number for each level, such as [1,2].")
    halvings, sides = levels - 1, height_and_width(image_size)
    if any(side % 2**halvings for side in sides):
        raise ValueError(
            f"image_size {image_size} is not divisible by {2**halvings}, which {levels} levels (multipliers) need: "
            "use fewer multipliers or another image size."
        )
    resolutions = [min(sides) // 2**level for level in range(levels)]
    unreached = sorted(set(attention) - set(resolutions))
    if unreached:
        raise ValueError(
            f"network.attention={list(attention)}: attention at {unreached} is never reached; say some of the resolutions {resolutions}, "
            f"such as network.attention=[{resolutions[-1]}]."
        )
    return resolutions


def _check_settings(block: Sequence[str], middle: Sequence[str], context_channels: int, lone_fir: bool) -> None:
    """Raises ValueError for settings that make no network."""
    if lone_fir:
        raise ValueError("fir=true resamples inside the residual blocks: set resample_in_resblock=true.")
    for name, words in (("block", block), ("middle", middle)):
        unknown = [word for word in words if word not in WORDS]
        if unknown or not words:
            raise ValueError(f"{name}={list(words)} should be a list of {', '.join(WORDS)}.")
    if block[0] not in CHANGE_WIDTH:
        raise ValueError(
            f"block={list(block)} begins with {block[0]}, which cannot change the width: begin with {' or '.join(CHANGE_WIDTH)}."
        )
    if ("ctxAtn" in (*block, *middle)) != bool(context_channels):
        raise ValueError(
            f"The block ctxAtn and context_channels={context_channels} go together: with a context, as conditions=text makes one, put "
            "ctxAtn into network.block or network.middle, and without one leave it out."
        )
