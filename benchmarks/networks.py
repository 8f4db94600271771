"""Networks of one shape, by this project and by its peers, and what one image costs in them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.networks import UNet

from .flops import operations

MULTIPLIERS = (1, 2, 2, 2)


def ours(channels: int, image_size: int, dropout: float = 0.0, num_classes: int = 0) -> UNet:
    """The DDPM U-Net, as conf/network/ddpm_cifar10.yaml has it."""
    return UNet(
        in_channels=3,
        out_channels=3,
        image_size=image_size,
        channels=channels,
        multipliers=MULTIPLIERS,
        res_blocks=2,
        attention=(16,),
        heads=1,
        dropout=dropout,
        scale_shift=False,
        resample_in_resblock=False,
        num_classes=num_classes,
    )


def diffusers(channels: int, image_size: int, dropout: float = 0.0, num_classes: int = 0) -> nn.Module:
    """The same as diffusers has it (google/ddpm-cifar10-32), attention at 16 x 16; the null class is one more."""
    from diffusers import UNet2DModel

    level = {32: 1, 16: 0}[image_size]
    down, up = ["DownBlock2D"] * 4, ["UpBlock2D"] * 4
    down[level], up[3 - level] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DModel(
        sample_size=image_size,
        block_out_channels=tuple(channels * m for m in MULTIPLIERS),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=dropout,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )


def lucidrains(channels: int, dropout: float = 0.0) -> nn.Module:
    """denoising-diffusion-pytorch's own U-Net, with its fastest attention."""
    from denoising_diffusion_pytorch import Unet

    return Unet(channels, dim_mults=MULTIPLIERS, flash_attn=True, dropout=dropout)


def work(network: Callable[..., Any], x: Tensor, *others: Any) -> float:
    """GFLOPs of one image of x [1, c, h, w] through the network and back, twice as many as forward and so three times that in all;
    by torch's counter, two to a multiplication."""
    with torch.no_grad():
        return 3 * operations(lambda: network(x, *others)) / 1e9


def facts(network: nn.Module, image_size: int, device: str, *others: Any) -> dict[str, float]:
    """Parameters in millions, and `work`."""
    x = torch.zeros(1, 3, image_size, image_size, device=device)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return {"parameters, M": round(parameters, 2), "GFLOP": work(network, x, torch.zeros(1, device=device), *others)}
