"""Sampling on a device that is pretended: every sampler and guidance makes its images there, those of the CPU, and how often it waits."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from covering import CLASSES, MORE, SHAPE, choices, recipe, unguided
from pretended import HERE, Device, a_gpu_without_waiting

from diffusion.editing import FromImage, Inpaint, Reconstruct, interpolated
from diffusion.generate import trajectories
from diffusion.oracles import EmpiricalDistribution
from diffusion.samplers import last
from diffusion.schedules import Cosine, discrete

pytestmark = pytest.mark.usefixtures("noise_of_a_device")
CHOICES = choices("sampler", "guidance", "schedule")
USUAL = {"sampler": "ddpm", "guidance": "cfg", "grid": "trailing", "schedule": "cosine", "parameterization": "epsilon", "learned": True}

ADAPTIVE = {"rk45", "dpm_adaptive"}  # each image has its own error and time: the device is asked which go on, and which `interval` guides
GUIDED = [("guidance", name) for name in CHOICES["guidance"]]
SEEDS, LABELS = range(3), torch.arange(3) % CLASSES
PICTURE = torch.linspace(0, 1, 18).reshape(SHAPE)


def check(case, monkeypatch):
    """The same images as on the CPU. The device is waited for at the end, for the images and for whether they are of numbers; what is read
    but once has been read before. An adaptive sampler goes on until the image that takes the most steps has arrived, and waits in each of
    its calls."""
    discrete._table.cache_clear()
    with Device() as device:
        on_it = recipe(case, monkeypatch, HERE)
        on_it(SEEDS, LABELS)
        device.counted.clear()
        found = on_it(SEEDS, LABELS)
    discrete._table.cache_clear()
    off_it = recipe(case, monkeypatch)
    expected = off_it(SEEDS, LABELS)
    assert torch.equal(found.images, expected.images) and found.nfe == expected.nfe
    adaptive = case["sampler"] in ADAPTIVE
    assert device.waits <= (6 * max(off_it([i], LABELS[i : i + 1]).nfe for i in SEEDS) if adaptive else 2), device.counted


@pytest.mark.parametrize("sampler", CHOICES["sampler"])
def test_samplers(sampler, monkeypatch):
    check(USUAL | {"sampler": sampler}, monkeypatch)


@pytest.mark.parametrize("guidance", CHOICES["guidance"])
def test_guidances(guidance, monkeypatch):
    check(USUAL | {"guidance": guidance}, monkeypatch)


def test_a_negative_condition(monkeypatch):
    monkeypatch.setitem(MORE, "negative", 2)
    check(USUAL, monkeypatch)


def alike(make):
    """make(device) is the same on the device as on the CPU."""
    discrete._table.cache_clear()
    with Device():
        found = make(HERE)
    discrete._table.cache_clear()
    assert torch.equal(found, make("cpu"))


@pytest.mark.parametrize(
    "edit", [FromImage, partial(Inpaint, mask=PICTURE.round(), resample=2), Reconstruct], ids=["img2img", "inpaint", "rec"]
)
def test_edits(edit, monkeypatch):
    def make(device):
        made = recipe(USUAL, monkeypatch, device)
        return replace(made, sampler=edit(made.sampler, image=PICTURE))(SEEDS, LABELS).images

    alike(make)


def test_interpolation(monkeypatch):
    alike(lambda device: interpolated(recipe(USUAL, monkeypatch, device), [3, 8], 3, LABELS))


def test_the_exact_denoiser(monkeypatch):
    """As `ckpt=exact` is measured."""

    def make(device):
        made = recipe(USUAL, monkeypatch)
        data = torch.linspace(-1, 1, 6 * PICTURE.numel()).reshape(6, *PICTURE.shape).to(device)
        return replace(made, denoiser=EmpiricalDistribution(data, Cosine(), LABELS.repeat(2).to(device)))(SEEDS, LABELS).images

    alike(make)


@pytest.mark.cuda
@pytest.mark.parametrize("choice", [("sampler", name) for name in CHOICES["sampler"] if name not in ADAPTIVE] + GUIDED, ids="-".join)
def test_on_a_gpu(choice, monkeypatch):
    made = recipe(USUAL | dict([choice]), monkeypatch, "cuda")
    parts = made.denoiser, made.sampler, made.grid, made.shape, SEEDS, LABELS
    expected = last(trajectories(*parts)).x
    with a_gpu_without_waiting():
        state = last(trajectories(*parts))
    assert torch.equal(state.x, expected) and expected.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), product(CHOICES["sampler"], CHOICES["schedule"]))
def test_every_combination(sampler, schedule, monkeypatch):
    for guidance in (name for name in CHOICES["guidance"] if not unguided(sampler, name)):
        check(USUAL | {"sampler": sampler, "guidance": guidance, "schedule": schedule, "parameterization": "v"}, monkeypatch)
