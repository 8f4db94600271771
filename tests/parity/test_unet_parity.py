"""The DDPM preset is diffusers' UNet2DModel of google/ddpm-cifar10-32, weight for weight."""

from copy import deepcopy

import pytest
import torch
from pixel_folders import CIFAR

from diffusion.networks import UNet
from diffusion.networks.embedding import sinusoidal

diffusers = pytest.importorskip("diffusers")


def reference(channels: int):
    """The configuration published with google/ddpm-cifar10-32 (its config.json), at any width."""
    widths = {"block_out_channels": (channels, 2 * channels, 2 * channels, 2 * channels), "norm_num_groups": 32}
    return diffusers.UNet2DModel(**{**CIFAR, **widths})


def ours(channels: int) -> UNet:
    return UNet(channels=channels, multipliers=(1, 2, 2, 2), res_blocks=2, attention=(16,), heads=1, scale_shift=False)


def copy(target: torch.nn.Module, *sources: torch.nn.Module) -> None:
    """Copies weights and biases; several sources are stacked, as ours keeps query, key and value in one layer."""
    for name, parameter in target.named_parameters():
        parameter.data.copy_(torch.cat([source.get_parameter(name) for source in sources]).reshape(parameter.shape))


def copy_residual(target, source) -> None:
    copy(target.norm, source.norm1)
    copy(target.conv, source.conv1)
    copy(target.condition.project, source.time_emb_proj)
    copy(target.condition.norm, source.norm2)
    copy(target.out, source.conv2)
    if source.conv_shortcut is not None:
        copy(target.skip, source.conv_shortcut)


def copy_attention(target, source) -> None:
    copy(target.norm, source.group_norm)
    copy(target.qkv, source.to_q, source.to_k, source.to_v)
    copy(target.out, source.to_out[0])


def copy_level(chains, block) -> None:
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    for chain, resnet, attention in zip(chains, block.resnets, attentions, strict=False):
        copy_residual(chain[0], resnet)
        if attention is not None:
            copy_attention(chain[1], attention)


def copy_all(net: UNet, source) -> None:
    copy(net.time.hidden, source.time_embedding.linear_1)
    copy(net.time.out, source.time_embedding.linear_2)
    copy(net.stem, source.conv_in)
    copy(net.norm, source.conv_norm_out)
    copy(net.out, source.conv_out)
    copy_residual(net.middle[0], source.mid_block.resnets[0])
    copy_attention(net.middle[1], source.mid_block.attentions[0])
    copy_residual(net.middle[2], source.mid_block.resnets[1])
    for level, block in enumerate(source.down_blocks):  # ours: two layers and a downsampling for each level
        copy_level(net.down[3 * level : 3 * level + 2], block)
        if block.downsamplers:
            copy(net.down[3 * level + 2].conv, block.downsamplers[0].conv)
    for level, block in enumerate(source.up_blocks):  # ours: three layers for each level, the last also upsampling
        copy_level(net.up[3 * level : 3 * level + 3], block)
        if block.upsamplers:
            copy(net.up[3 * level + 2][-1].conv, block.upsamplers[0].conv)


def test_the_ddpm_unet_has_as_many_parameters_as_diffusers():
    with torch.device("meta"):
        count, expected = (sum(p.numel() for p in net.parameters()) for net in (ours(128), reference(128)))
    assert count == expected


@pytest.fixture(scope="module")
def pair():
    """Ours and diffusers' at full width, with the same random weights everywhere."""
    torch.manual_seed(0)
    source, net = reference(128).eval(), ours(128).eval()
    copy_all(net, source)
    return net, source


@torch.no_grad()
def test_the_ddpm_unet_gives_what_diffusers_gives(pair):
    net, source = pair
    x, label = torch.randn(3, 3, 32, 32), torch.tensor([0.0, 417.0, 999.0])
    expected = source(x, label).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, label), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_ddpm_unet_gives_what_diffusers_gives_in_float64(pair):
    """diffusers' sinusoid is float32 always, so it is given ours here: all that comes after it is compared."""
    net, source = (copy_of.double() for copy_of in deepcopy(pair))
    source.time_proj.register_forward_hook(lambda module, args, out: sinusoidal(args[0], 128))
    x, label = torch.randn(3, 3, 32, 32).double(), torch.tensor([0.0, 417.0, 999.0]).double()
    torch.testing.assert_close(net(x, label), source(x, label).sample, rtol=0, atol=1e-12)
