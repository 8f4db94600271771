"""The order of weights in memory: on a GPU the channels last, and whatever a checkpoint's was, its state follows."""

import platform
import subprocess
import sys

import pytest
import torch
from commands import ROOT
from composing import TINY, composed

from diffusion.networks import UNet
from diffusion.support import devices
from diffusion.support.devices import fastest, laid_out
from diffusion.support.errors import UserError
from diffusion.training.base import follow_layout
from diffusion.training.ema import EMA
from diffusion.training.machine import precise, trainer_settings

SETTINGS = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "attention": (4,)}


def network(last):
    torch.manual_seed(0)
    return laid_out(UNet(**SETTINGS), torch.device("cuda" if last else "cpu"))


def trained(net, optimizer, steps):
    x, label = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x, label) - x.flip(0)).square().mean().backward()
        optimizer.step()


def test_the_channels_are_last_on_a_gpu_alone():
    assert network(True).stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert network(False).stem.weight.is_contiguous() and not network(True).stem.weight.is_contiguous()


@pytest.mark.parametrize("last", [True, False])
def test_state_of_the_other_layout_goes_on_as_if_it_were_this_one(last, tmp_path):
    """Adam's and the average's, by a checkpoint's file, as between a GPU and a CPU."""
    theirs = network(not last)
    optimizer, average = torch.optim.Adam(theirs.parameters(), lr=0.01, fused=True), EMA(0.9).start(theirs)
    trained(theirs, optimizer, 3)
    average.update(theirs)
    torch.save({"weights": theirs.state_dict(), "optimizer": optimizer.state_dict(), "ema": average.state_dict()}, tmp_path / "file")
    trained(theirs, optimizer, 3)
    average.update(theirs)

    ours, saved = network(last), torch.load(tmp_path / "file", weights_only=True)
    own, mean = torch.optim.Adam(ours.parameters(), lr=0.01, fused=True), EMA(0.9).start(ours)
    ours.load_state_dict(saved["weights"])
    own.load_state_dict(saved["optimizer"])
    mean.load_state_dict(saved["ema"])
    follow_layout(own)
    stem = ours.stem.weight
    assert stem.stride() == own.state[stem]["exp_avg"].stride() == mean.shadow["stem.weight"].stride() != theirs.stem.weight.stride()
    trained(ours, own, 3)
    mean.update(ours)
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean.shadow[name], average.shadow[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hardware", "word"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_precision_that_auto_stands_for(hardware, word, monkeypatch, caplog):
    monkeypatch.setattr(devices.torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    monkeypatch.setattr(devices.torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(devices.torch.cuda, "is_bf16_supported", lambda including_emulation: hardware and not including_emulation)
    assert fastest("cpu") == fastest("cuda") == word
    caplog.set_level("INFO")
    found = precise(composed(*TINY, "precision=auto"))
    assert found["precision"] == found["trainer"]["precision"] == word and f"precision=auto: {word}" in caplog.text
    assert precise(composed(*TINY))["precision"] == "32-true"


def test_a_precision_that_is_none_is_refused_by_its_own_name():
    with pytest.raises(UserError, match=r"^precision=bf17 is not one .*32-true, bf16-mixed, 16-mixed or auto\.$"):
        precise(composed(*TINY, "precision=bf17"))


def test_a_precision_of_the_trainers_own_is_not_overridden_by_auto():
    config = precise(composed(*TINY, "precision=auto", "trainer.precision=16-mixed"))
    with pytest.raises(UserError, match=r"^trainer\.precision=16-mixed contradicts precision="):
        trainer_settings(config)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_what_a_process_on_a_cpu_frees_it_keeps_for_the_next_step():
    """Ten steps that ask for 160 MB of tensors of several sizes and free them: the kernel gives out pages in the first few alone."""
    words = """
import resource, sys, torch
from diffusion.support.host import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    kept = [torch.ones(n * 2**18) for n in (2, 10, 40, 9, 60, 39)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""
    given, kept = (int(subprocess.check_output([sys.executable, "-c", words, how], cwd=ROOT)) for how in ("give back", "keep"))
    assert 5 * kept < given and given > 50_000  # where the heap has holes of no use, a few steps are served anew
