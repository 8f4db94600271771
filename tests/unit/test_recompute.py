"""Gradient checkpointing: the same numbers from less memory."""

import json
import runpy
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from composing import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.networks import DiT, UNet
from diffusion.networks.recompute import through

PLAIN = dict(in_channels=3, out_channels=6, image_size=16)
NETWORKS = {
    "unet": (UNet, dict(channels=16, multipliers=(1, 2, 2), attention=(8,), num_classes=5, dropout=0.3)),
    "unet of many words": (
        UNet,
        dict(channels=16, multipliers=(1, 2), attention=(8,), block=("conv", "clsAtn", "atn", "chnAtn"), num_classes=5, dropout=0.3),
    ),
    "pyramid": (
        UNet,
        dict(channels=16, multipliers=(1, 2), fir=True, resample_in_resblock=True, input_pyramid=True, num_classes=5, dropout=0.3),
    ),
    "dit": (DiT, dict(width=32, depth=3, heads=4, num_classes=5)),
}


def awake(kind, settings, checkpointing):
    """The same network each time, with random values in place of its zeros."""
    torch.manual_seed(0)
    network = kind(**PLAIN, **settings, checkpointing=checkpointing)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def gradients(network, twice=False):
    """(output, the random number that comes next, gradients) of a loss, of its own gradient if `twice`."""
    torch.manual_seed(1)
    x, label, cond = torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([3.0, 700.0]), torch.tensor([1, -1])
    with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():  # as the objectives do that derive twice; not on the way back
        out = network(x, label, cond)
        after, loss = torch.rand(1), out.square().mean()
        if twice:
            loss = torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()
    loss.backward()
    return out.detach(), after, [p.grad for p in network.parameters()]


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_equal_bit_for_bit(name, twice):
    """With dropout, whose masks are drawn once, and for objectives that differentiate the network themselves."""
    plain, recomputed = (gradients(awake(*NETWORKS[name], on).train(), twice) for on in (False, True))
    assert all(gradient is not None and gradient.any() for gradient in plain[2]) or twice
    for ours, theirs in zip(recomputed[2], plain[2], strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert torch.equal(recomputed[0], plain[0]) and torch.equal(recomputed[1], plain[1])


def test_the_blocks_are_made_again_on_the_way_back():
    """And without gradients they are not."""
    network, calls = awake(*NETWORKS["dit"], True), []
    network.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    out = network(torch.randn(1, 3, 16, 16), torch.zeros(1))
    assert len(calls) == 1
    out.mean().backward()
    assert len(calls) == 2
    with torch.no_grad():
        network(torch.randn(1, 3, 16, 16), torch.zeros(1))
    assert len(calls) == 3
    assert not through(True, lambda x: x.clone(), torch.ones(1)).requires_grad


def test_the_half_of_the_memory_of_a_small_network():
    """The largest sum of bytes alive, counted by each operation's storages."""
    live = runpy.run_path(str(ROOT / "benchmarks/memory.py"))["LiveBytes"]
    peaks = []
    for on in (False, True):
        network = UNet(**PLAIN, channels=32, multipliers=(1, 2, 2), res_blocks=2, attention=(8,), checkpointing=on)
        x, label = torch.randn(16, 3, 16, 16), torch.zeros(16)
        with live() as counted:
            network(x, label).square().mean().backward()
        peaks.append(counted.peak)
    assert peaks[1] < 0.6 * peaks[0], peaks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_compiled(name):
    kind, settings = NETWORKS[name]
    settings = settings | ({"dropout": 0.0} if "dropout" in settings else {})  # compiled code draws its own masks
    plain, compiled = (awake(kind, settings, on) for on in (False, True))
    compiled.compile()
    for ours, theirs in zip(gradients(compiled)[2], gradients(plain)[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_fifths_less_of_the_network_of_ddpm():
    """The 35.7 M U-Net, counted as tensors alive; what is constant (weights, gradients, Adam's moments, the average) included."""
    peaks = []
    for on in ("false", "true"):
        line = [sys.executable, "benchmarks/memory.py", f"network.checkpointing={on}", "--one=tensors", "--batch=32"]
        said = subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=900).stdout
        peaks.append(json.loads(said.splitlines()[-1])["peak"])
    assert peaks[1] < 0.6 * peaks[0], peaks
