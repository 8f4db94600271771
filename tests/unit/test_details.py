"""The details in which published U-Nets differ: each against its closed form, and the defaults as they were."""

import math

import pytest
import torch
from torch import nn

from diffusion.model import build
from diffusion.networks import UNet
from diffusion.networks.details import Details
from diffusion.networks.embedding import Given, sinusoidal
from diffusion.networks.resampling import Downsample

TINY = dict(in_channels=2, out_channels=2, image_size=8, channels=8, multipliers=(1, 2), res_blocks=1, attention=(4,))


def norms(net: nn.Module) -> set[tuple[int, int, float]]:
    return {(norm.num_channels, norm.num_groups, norm.eps) for norm in net.modules() if isinstance(norm, nn.GroupNorm)}


def test_the_norms_of_all_blocks_have_the_groups_and_the_eps_that_are_said():
    net = UNet(**TINY, block=("res", "conv", "clsAtn", "atn"), num_classes=3, details=Details(groups=8, eps=1e-3))
    assert norms(net) == {(channels, 8, 1e-3) for channels in (8, 16, 24, 32)}
    assert norms(UNet(**TINY)) == {(8, 2, 1e-6), (16, 4, 1e-6), (24, 6, 1e-6), (32, 8, 1e-6)}  # four channels a group


def test_groups_that_do_not_divide_a_width_are_a_sentence():
    with pytest.raises(ValueError, match="8 channels do not divide into 3 groups"):
        UNet(**TINY, details=Details(groups=3))


def test_the_sinusoid_of_improved_ddpm():
    """[cos, sin](label 10000^(-i / n)), i = 0 .. n - 1 (their code)."""
    label = torch.tensor([0.0, 3.5, 999.0], dtype=torch.float64)
    found = sinusoidal(label, 6, shift=0, cosines_first=True)
    for row, t in zip(found.tolist(), label.tolist(), strict=True):
        angles = [t * 10_000 ** (-i / 3) for i in range(3)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-12)


def test_the_sinusoid_may_have_a_width_of_its_own():
    net = UNet(**TINY, details=Details(time_channels=12))
    assert net.time.hidden.weight.shape == (32, 12)
    with pytest.raises(ValueError, match="even and at least 4"):
        UNet(**TINY, details=Details(time_channels=7))


def test_the_label_may_count_as_of_a_thousand_steps():
    """rescale_timesteps of OpenAI's code: step i of 4000 is told as i / 4."""
    net, label = UNet(**TINY, details=Details(label_scale=0.25)), torch.tensor([0.0, 1.0, 3999.0])
    torch.testing.assert_close(net.time.features(label), sinusoidal(label / 4, 8), rtol=0, atol=0)


def test_a_level_may_have_half_the_width_and_the_time_its_own():
    """As ADM's 512 x 512 network: the sinusoid is of the width that is said, the first level of half."""
    net = UNet(**TINY | {"multipliers": (0.5, 1)})
    assert net.widths == [4, 8] and net.stem.weight.shape[0] == 4 and net.time.hidden.weight.shape == (32, 8)
    with pytest.raises(ValueError, match=r"multipliers\[0\]=0.1 of UNet must be between 0.25 and 100000"):
        UNet(**TINY | {"multipliers": (0.1, 1)})


def test_the_stem_may_have_a_width_of_its_own():
    net = UNet(**TINY | {"multipliers": (2, 2)}, details=Details(stem_channels=8))
    assert net.stem.weight.shape[0] == 8 and net.down[0][0].conv.weight.shape[:2] == (16, 8) and net.up[-1][0].conv.weight.shape[1] == 24
    assert net(torch.randn(1, 2, 8, 8), torch.zeros(1)).shape == (1, 2, 8, 8)


def test_a_symmetric_halving_is_a_convolution_padded_by_one():
    step, x = Downsample(3, symmetric=True), torch.randn(2, 3, 8, 8)
    whole = nn.functional.conv2d(x, step.conv.weight, step.conv.bias, stride=2, padding=1)
    torch.testing.assert_close(step(x, Given(x, x)), whole, rtol=0, atol=0)
    found = [block for block in UNet(**TINY, details=Details(symmetric=True)).down if isinstance(block, Downsample)]
    assert [block.padding for block in found] == [(1, 1, 1, 1)]
    assert {block.padding for block in UNet(**TINY).down if isinstance(block, Downsample)} == {(0, 1, 0, 1)}


@torch.no_grad()
def test_a_class_may_join_the_time_before_the_perceptron():
    """The embedding is out(silu(hidden(features + row))), the row that of the class, and of the null class for None."""
    net = UNet(**TINY, num_classes=3, details=Details(class_first=True))
    label, classes = torch.tensor([5.0, 700.0]), torch.tensor([2, -1])
    features = sinusoidal(label, 8) + net.classes.weight[[2, 3]]
    embedding = nn.functional.silu(net.time.out(nn.functional.silu(net.time.hidden(features))))
    assert net.classes.weight.shape == (4, 8)
    torch.testing.assert_close(net.given(label, classes).embedding, embedding, rtol=0, atol=0)
    torch.testing.assert_close(net.given(label[1:], None).embedding, embedding[1:], rtol=0, atol=1e-6)


def test_a_configuration_says_them():
    node = {"_target_": "diffusion.networks.UNet", **TINY, "multipliers": [1, 2], "attention": [4]}
    said = {"_target_": "diffusion.networks.details.Details", "groups": 4, "eps": 1e-5}
    assert norms(build({**node, "details": said}, "network")) == {(c, 4, 1e-5) for c in (8, 16, 24, 32)}
    with pytest.raises(ValueError, match=r"network.details.eps=0 must be above 0"):
        build({**node, "details": {**said, "eps": 0}}, "network")
