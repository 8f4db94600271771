"""Sampling on a device that is pretended: every sampler and guidance makes its images there, those of the CPU, and how often it waits."""

from itertools import product

import pytest
import torch
from covering import CLASSES, MORE, choices, recipe
from pretended import HERE, Device

from diffusion.schedules import discrete

CHOICES = choices("sampler", "guidance", "schedule")
USUAL = {"sampler": "ddpm", "guidance": "cfg", "grid": "trailing", "schedule": "cosine", "parameterization": "epsilon", "learned": True}


ADAPTIVE = {"rk45", "dpm_adaptive"}  # each image's error decides of its next step: the device is asked whether all are there
SEEDS, LABELS = range(3), torch.arange(3) % CLASSES


def check(case, monkeypatch):
    """The same images as on the CPU. The device is waited for once, for the images; what is read but once has been read before."""
    discrete._table.cache_clear()
    with Device() as device:
        on_it = recipe(case, monkeypatch, HERE)
        on_it(SEEDS, LABELS)
        device.counted.clear()
        found = on_it(SEEDS, LABELS)
    discrete._table.cache_clear()
    expected = recipe(case, monkeypatch)(SEEDS, LABELS)
    assert torch.equal(found.images, expected.images) and found.nfe == expected.nfe
    assert device.waits <= (3 * found.nfe if case["sampler"] in ADAPTIVE else 1), device.counted


@pytest.mark.parametrize("sampler", CHOICES["sampler"])
def test_samplers(sampler, monkeypatch):
    check(USUAL | {"sampler": sampler}, monkeypatch)


@pytest.mark.parametrize("guidance", CHOICES["guidance"])
def test_guidances(guidance, monkeypatch):
    check(USUAL | {"guidance": guidance}, monkeypatch)


def test_a_negative_condition(monkeypatch):
    monkeypatch.setitem(MORE, "negative", 2)
    check(USUAL, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), product(CHOICES["sampler"], CHOICES["schedule"]))
def test_every_combination(sampler, schedule, monkeypatch):
    for guidance in CHOICES["guidance"]:
        check(USUAL | {"sampler": sampler, "guidance": guidance, "schedule": schedule, "parameterization": "v"}, monkeypatch)
