"""What the device computes is what the CPU computes, in each precision, eagerly and compiled."""

from functools import partial

import pytest
import torch
from gpu_place import apart
from torch import nn

from diffusion.generate import SeededNoise
from diffusion.networks import DiT, UNet
from diffusion.schedules import Cosine, Linear
from diffusion.support.devices import multiplying_in

pytestmark = pytest.mark.cuda
SMALL = {"image_size": 16, "channels": 32, "multipliers": (1, 2), "res_blocks": 1, "num_classes": 4}
NETWORKS = {
    "unet": partial(UNet, attention=(8,), out_channels=6, **SMALL),
    "classes": partial(UNet, attention=(8,), block=("res", "clsAtn", "atn", "chnAtn"), **SMALL),
    "dit": partial(DiT, 3, 3, image_size=16, width=64, depth=2, heads=2, num_classes=4),
}
BANDS = {"highest": 1e-5, "high": 3e-3, "bf16": 3e-2}  # ||there - here|| / ||here||: float32, TF32, bfloat16


def made(name):
    """A network of this kind with weights none of which is zero, in float64, and what it is asked."""
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    return network, (torch.randn(4, 3, 16, 16).double(), torch.tensor([3.0, 250.0, 600.0, 990.0]).double(), torch.arange(4))


def answered(network, asked, precision="highest"):
    """Its output, and the gradient of its first parameters."""
    device = next(network.parameters()).device
    with multiplying_in("high" if precision == "bf16" else precision):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = network(*(value.to(device) for value in asked))
        gradient = torch.autograd.grad(out.float().pow(2).mean(), list(network.parameters())[:8], allow_unused=True)
        return out, torch.cat([one.flatten() for one in gradient if one is not None])


@pytest.mark.parametrize("precision", BANDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_float64_on_a_cpu(device, name, precision):
    network, asked = made(name)
    expected = answered(network, asked)
    there = network.float().to(device.name)
    found = answered(there, [value.float() if value.is_floating_point() else value for value in asked], precision)
    assert [apart(one, other) < BANDS[precision] for one, other in zip(found, expected, strict=True)] == [True, True]
    assert precision != "bf16" or apart(found[0], expected[0]) > 1e-5  # it was in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_is_eager(device, name):
    """By the compiler that the device has; on a CPU its front half, whose graphs are run as they are."""
    network, asked = made(name)
    network = network.float().to(device.name)
    asked = [value.float() if value.is_floating_point() else value for value in asked]
    expected = answered(network, asked)
    torch.compiler.reset()
    network.compile(backend="inductor" if device.real else "aot_eager")
    for one, other in zip(answered(network, asked), expected, strict=True):
        assert apart(one, other) < 1e-5


def test_a_seed_s_noise_is_the_device_s_own_and_again_the_same(device):
    x = torch.empty(3, 2, 4, 4, device=device.name)
    whole, again = (SeededNoise([5, 0, 9], device.name)(x) for _ in range(2))
    alone = SeededNoise([9], device.name)(x[:1])
    assert torch.equal(whole, again) and torch.equal(whole[2:], alone) and not torch.equal(whole[0], whole[1])


def test_schedules_are_of_float64(device):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for schedule in (Cosine(), Linear()):
        for there, here in zip(schedule(t.to(device.name)), schedule(t), strict=True):
            torch.testing.assert_close(there.cpu(), here, rtol=1e-12, atol=1e-14)
