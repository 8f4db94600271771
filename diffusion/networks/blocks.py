"""The parts of the U-Net. Every block is called as block(x, given), so that any may stand in any place.

x is [b, c, h, w]; `given` holds the embeddings and the context (see `Given`), of which each block takes what it needs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import gelu

from diffusion.networks.embedding import Given


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-6) -> nn.GroupNorm:
    """GroupNorm over `groups`; if None, over 32 as in DDPM, and over fewer where channels are few: at least four channels a group.

    A group of one channel would wipe out that channel's mean, the brightness of an 8x8 image. eps is DDPM's. Raises ValueError if the
    groups do not divide the channels.
    """
    if groups is None:
        most = max(1, min(32, channels // 4))
        groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups of a norm: change details.groups or the widths.")
    return nn.GroupNorm(groups, channels, eps=eps)


Norm = Callable[[int], nn.Module]  # the norm of a layer, made for its width; what it gives is a new tensor


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of an x that is used nowhere else: without gradients it takes the memory of x."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to 0: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class AdditiveNorm(nn.Module):
    """DDPM's conditioning: GroupNorm(h + W e)."""

    def __init__(self, channels: int, embedding_channels: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.project = nn.Linear(embedding_channels, channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(h + self.project(embedding)[:, :, None, None])


class AdaptiveNorm(nn.Module):
    """Scale-shift conditioning, AdaGN: (1 + scale) GroupNorm(h) + shift, [scale, shift] = W e (IDDPM; ADM sec. 3.1)."""

    def __init__(self, channels: int, embedding_channels: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.project = nn.Linear(embedding_channels, 2 * channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.norm(h) * (1 + scale) + shift


class PlainNorm(nn.Module):
    """No conditioning: GroupNorm(h)."""

    def __init__(self, channels: int, embedding_channels: int = 0, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm = norm(channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(h)


def added(skip: Tensor, branch: Tensor, rescale: bool) -> Tensor:
    """skip + branch; with `rescale` divided by sqrt(2), which keeps the variance of the sum (SDE app. H.1, after StyleGAN 2)."""
    return (skip + branch) * math.sqrt(0.5) if rescale else skip + branch


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioned norm, SiLU, dropout, conv; added to the input (DDPM, app. B).

    Without `embedding_channels` nothing conditions it. `resample`, if given, acts on both branches: BigGAN's up- and down-sampling block
    (ADM, sec. 3). The input goes through a 1x1 convolution where the width changes, and with `project` in any case.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: nn.Module | None = None,
        rescale: bool = False,
        project: bool = False,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = norm(in_channels)
        self.resample = resample or nn.Identity()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        conditioned = (AdaptiveNorm if scale_shift else AdditiveNorm) if embedding_channels else PlainNorm
        self.condition = conditioned(out_channels, embedding_channels, norm)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels and not project else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = self.conv(self.resample(silu(self.norm(x))))
        h = silu(self.condition(h, given.embedding))
        return added(self.skip(self.resample(x)), self.out(self.dropout(h)), self.rescale)


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
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.condition = (AdaptiveNorm if scale_shift else AdditiveNorm)(in_channels, embedding_channels, norm)
        self.expand = nn.Conv2d(in_channels, 4 * in_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Conv2d(4 * in_channels, out_channels, 1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = gelu(self.expand(self.condition(self.depthwise(x), given.embedding)))
        return added(self.skip(x), self.out(self.dropout(h)), self.rescale)


class Chain(nn.ModuleList):
    """Blocks one after the other, each given the same."""

    def forward(self, x: Tensor, given: Given) -> Tensor:
        for block in self:
            x = block(x, given)
        return x
