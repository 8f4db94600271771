"""Every sampler and guidance on the device, against the CPU: of the same noise the same images, and one per seed whatever the batch."""

from dataclasses import replace

import pytest
import torch
from covering import CLASSES, SHAPE, choices, recipe
from gpu_place import apart

from diffusion.generate import Asked, SeededNoise, trajectories
from diffusion.samplers import last

pytestmark = pytest.mark.cuda
CHOICES = choices("sampler", "guidance")
USUAL = {"sampler": "ddpm", "guidance": "cfg", "grid": "trailing", "schedule": "cosine", "parameterization": "epsilon", "learned": True}
EVERY = [("sampler", name) for name in CHOICES["sampler"]] + [("guidance", name) for name in CHOICES["guidance"]]
ADAPTIVE = {"rk45", "dpm_adaptive"}  # whose steps follow the rounding, to their tolerances of 0.01
SEEDS, LABELS = range(5), torch.arange(5) % CLASSES


def walked(made, dtype):
    """The end of a walk in this dtype, of the CPU's noise wherever it is walked."""
    denoise = Asked(made.denoiser, LABELS.to(device := Asked(made.denoiser).device))
    drawn = SeededNoise(SEEDS, "cpu")

    def noise(x):
        return drawn(torch.empty(x.shape)).to(device, x.dtype)

    times = made.grid(made.denoiser.schedule)
    x = made.denoiser.schedule(times[0])[1] * noise(torch.empty(len(SEEDS), *SHAPE, dtype=dtype))
    with torch.no_grad():
        return last(made.sampler(denoise, x, times, noise)).x


@pytest.mark.parametrize("choice", EVERY, ids="-".join)
def test_of_the_same_noise_as_in_float64_on_a_cpu(device, choice, monkeypatch):
    case = USUAL | dict([choice])
    off_it, on_it = recipe(case, monkeypatch), recipe(case, monkeypatch, device.name)
    off_it.model.double()
    expected, found = walked(off_it, torch.float64), walked(on_it, torch.float32)
    assert expected.dtype == torch.float64 and found.dtype == torch.float32 and found.device.type == device.name
    assert apart(found, expected) < (0.02 if choice[1] in ADAPTIVE else 2e-4)


@pytest.mark.parametrize("choice", EVERY, ids="-".join)
def test_an_image_is_its_seed_s_whatever_its_batch(device, choice, monkeypatch):
    """Drawn on the device; the network's arithmetic here is each image's own."""
    made = recipe(USUAL | dict([choice]), monkeypatch, device.name)
    whole = made(SEEDS, LABELS).images
    assert torch.equal(made(SEEDS, LABELS).images, whole) and len(whole.unique(dim=0)) == len(SEEDS)
    assert (replace(made, batch_size=2)(SEEDS, LABELS).images.int() - whole.int()).abs().max() <= 1


@pytest.mark.parametrize("sampler", [name for name in CHOICES["sampler"] if name not in ADAPTIVE])
def test_a_walk_waits_for_nothing(device, sampler, monkeypatch):
    made = recipe(USUAL | {"sampler": sampler}, monkeypatch, device.name)
    parts = made.denoiser, made.sampler, made.grid, made.shape, SEEDS, LABELS
    expected = last(trajectories(*parts)).x
    with device.without_waiting():
        found = last(trajectories(*parts)).x
    assert torch.equal(found, expected) and expected.isfinite().all()
