"""A training on the device: waiting for nothing, again bit for bit, resumed, in each precision, compiled, and served from the device."""

import pytest
import torch
from gpu_place import apart, same, saved

from diffusion import checkpoint
from diffusion.training.module import DiffusionModule

pytestmark = pytest.mark.cuda


def first_fast(ways):
    """Cases of which the first stands for the others where a CPU has them all elsewhere; a GPU is given every one."""
    return [pytest.param(words, marks=[pytest.mark.slow] * bool(i), id=" ".join(words)) for i, words in enumerate(ways)]


STEPS = 6
LATE = [f"{key}_every=100" for key in ("log", "eval", "checkpoint")]
TINY_DIT = ["network=dit_digits", "network.width=32", "network.depth=2"]
WAYS_TO_TRAIN = [
    [],
    ["precision=bf16-mixed"],
    ["accumulate=2", "ema=posthoc"],
    ["schedule=edm", "parameterization=edm", "objective=edm", "times=log_normal"],
    ["objective=vlb", "times=importance", "schedule.num_timesteps=20"],
    ["schedule=flow", "parameterization=velocity", "objective=simple", "times=logit_normal"],
    ["data.device_resident=false"],
    TINY_DIT,
]
DETERMINISTIC = [[], ["precision=bf16-mixed"], TINY_DIT]
COMPILED = ["compile=blocks", "compile=network", "compile=step"]
LOSSES = {"precision=bf16-mixed": 0.02} | dict.fromkeys(COMPILED, 1e-4)  # of the loss after some steps, beside float32's and eager's


def waits_for_nothing(device, folder, monkeypatch, *words):
    """Lightning's loop, the data, forward, backward, clipping, the optimizer and the averages: torch itself raises an error for a wait."""
    seen = []

    def watch(self, *_):
        seen.append(self.global_step)
        device.must_not_wait(2 <= self.global_step < STEPS - 1)

    monkeypatch.setattr(DiffusionModule, "on_train_batch_start", watch, raising=False)
    try:
        found = device.train(folder, "run", f"steps={STEPS}", *LATE, *words)
    finally:
        device.must_not_wait(False)
    assert STEPS - 1 in seen and torch.tensor(found["loss"]).isfinite()


@pytest.mark.parametrize("words", first_fast(WAYS_TO_TRAIN))
def test_from_step_to_step_nothing_waits(device, tmp_path, monkeypatch, words):
    waits_for_nothing(device, tmp_path, monkeypatch, *words)


@pytest.mark.slow
@pytest.mark.parametrize("word", COMPILED)
def test_nor_where_it_is_compiled(device, tmp_path, monkeypatch, word):
    waits_for_nothing(device, tmp_path, monkeypatch, word)


def test_nor_in_16_bits(tmp_path, monkeypatch, device):
    if not device.real:
        pytest.skip("16-mixed trains on a GPU")
    waits_for_nothing(device, tmp_path, monkeypatch, "precision=16-mixed")


@pytest.mark.parametrize("words", first_fast(DETERMINISTIC))
def test_deterministic_is_bit_for_bit_again_and_resumed(device, tmp_path, words):
    words = ["deterministic=true", *words]
    for name in ("whole", "again"):
        device.train(tmp_path, name, *words, f"steps={STEPS}")
    assert same(tmp_path / "whole", tmp_path / "again")
    device.train(tmp_path, "parts", *words, "steps=3")
    assert not same(tmp_path / "whole", tmp_path / "parts")
    device.train(tmp_path, "parts", *words, f"steps={STEPS}", f"resume={tmp_path / 'parts'}")
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_stream_from_the_device_is_that_from_the_cache(device, tmp_path):
    """data.device_resident is where the items are, and nothing else."""
    for name, resident in (("there", "true"), ("here", "false")):
        device.train(tmp_path, name, "deterministic=true", f"steps={STEPS}", f"data.device_resident={resident}")
    assert same(tmp_path / "there", tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("word", LOSSES)
def test_the_loss_is_that_of_float32_computed_eagerly(device, tmp_path, word):
    words = ["steps=20", "log_every=20", *LATE[1:], "optimizer.lr=0.001", "warmup=1"]
    plain, other = (device.train(tmp_path, name, *words, *more) for name, more in (("plain", []), ("other", [word])))
    assert other["loss"] == pytest.approx(plain["loss"], rel=LOSSES[word]) and plain["loss"] < 1
    first, second = (saved(tmp_path / name) for name in ("plain", "other"))
    assert not all(torch.equal(first[name], second[name]) for name in first)  # the word did something


@pytest.mark.slow
def test_half_precision_clips_what_float32_clips(device, tmp_path):
    words = ["grad_clip=0.05", "steps=30", "warmup=1", "optimizer.lr=0.003", *LATE]
    half = "16-mixed" if device.real else "bf16-mixed"
    norms = {of: device.train(tmp_path, of, *words, f"precision={of}")["gradient_norm"] for of in ("32-true", half)}
    assert norms[half] == pytest.approx(norms["32-true"], rel=0.5)  # the first steps of 16-mixed are left out; the scale is 65536


@pytest.fixture(scope="module")
def run(device, tmp_path_factory):
    """A trained run's model on the CPU and on the device."""
    folder = tmp_path_factory.mktemp("trained")
    device.train(folder, "run", "steps=8", *LATE)
    return checkpoint.load(folder / "run"), checkpoint.load(folder / "run").to(device.name)


def test_images_do_not_depend_on_the_batch(run):
    _, model = run
    whole, parts = (model.recipe(batch_size=size)(range(12), torch.arange(12) % 4).images.int() for size in (12, 5))
    assert (whole - parts).abs().max() <= 1  # the network's rounding may move a pixel to the next level
    assert torch.equal(whole, model.recipe(batch_size=12)(range(12), torch.arange(12) % 4).images.int())


def test_a_run_s_denoiser_is_that_of_the_cpu(device, run):
    """By its recipe, in float32 where that is asked for: convolutions, too, not in TF32."""
    here, there = run
    x, t, cond = torch.randn(4, 1, 8, 8), torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64), torch.arange(4)
    with torch.no_grad(), there.recipe().computing():
        expected, found = here.denoiser(x, t, cond), there.denoiser(*(value.to(device.name) for value in (x, t, cond)))
    assert max(apart(one, other) for one, other in zip(found[:2], expected[:2], strict=True)) < 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_two_gpus_train_what_one_trains(device, tmp_path):
    words = ["steps=10", "data.device_resident=true"]
    device.train(tmp_path, "one", *words)
    device.train(tmp_path, "two", *words, "trainer=ddp", f"trainer.accelerator={device.name}", "trainer.devices=2")
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
