"""Memory on the device: as much after one step as after the next, and after images were made as before."""

import pytest
import torch

from diffusion import checkpoint
from diffusion.training.module import DiffusionModule

pytestmark = pytest.mark.cuda
LATE = [f"{key}_every=100" for key in ("log", "eval", "checkpoint")]
STEPS = 9


WAYS = [[], ["precision=bf16-mixed", "ema=posthoc"], ["accumulate=2"]]
SCALARS = 4096  # bytes of losses that wait to be read, far under what any picture or weight takes


@pytest.mark.parametrize("words", [pytest.param(words, marks=[pytest.mark.slow] * bool(words), id=" ".join(words)) for words in WAYS])
def test_steps_keep_nothing(device, tmp_path, monkeypatch, words):
    """From when Adam's state and the averages are there."""
    held = {}

    def look(self, batch, number):
        if number % 2 == 0 and self.global_step in (STEPS // 2, STEPS - 1) and self.global_step not in held:
            held[self.global_step] = device.held()

    monkeypatch.setattr(DiffusionModule, "on_train_batch_start", look, raising=False)
    device.train(tmp_path, "run", f"steps={STEPS}", *LATE, *words)
    first, then = held.values()
    assert first > 100 * SCALARS and abs(then - first) <= SCALARS


def test_images_leave_nothing_behind(device, tmp_path):
    device.train(tmp_path, "run", "steps=2", *LATE)
    model = checkpoint.load(tmp_path / "run").to(device.name)
    recipe = model.recipe(batch_size=4)
    recipe(range(4), torch.arange(4))  # what is made once
    before = device.held()
    recipe(range(12), torch.arange(12) % 4)
    assert device.held() == before


def test_the_peak_is_of_a_batch_however_many_images(tmp_path, device):
    if not device.real:
        pytest.skip("an allocator's peak is a GPU's")
    device.train(tmp_path, "run", "steps=2", *LATE)
    recipe = checkpoint.load(tmp_path / "run").to(device.name).recipe(batch_size=8)

    def peak(count):
        torch.cuda.reset_peak_memory_stats()
        recipe(range(count), torch.arange(count) % 4)
        return torch.cuda.max_memory_allocated()

    peak(8)  # what is made once
    once = peak(8)
    assert once <= peak(24) <= 1.01 * once
