"""The promises on a real GPU; tests/README.md says how to run them. Nothing here runs without one."""

import pytest
import torch
from composing import TINY, composed

from diffusion import checkpoint
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

pytestmark = pytest.mark.cuda
STEPS = 6
LATE = [f"{key}_every=100" for key in ("log", "eval", "checkpoint")]
GPU = [*TINY, f"steps={STEPS}", "trainer.accelerator=cuda", "matmul_precision=highest"]
DIT = ["network=dit_digits", "network.width=32", "network.depth=2"]
WAYS_TO_TRAIN = [
    [],
    ["precision=bf16-mixed"],
    ["precision=16-mixed"],
    ["accumulate=2", "ema=posthoc"],
    ["compile=blocks"],
    ["compile=network"],
    ["compile=step"],
    ["schedule=edm", "parameterization=edm", "objective=edm", "times=log_normal"],
    ["objective=vlb", "times=importance", "schedule.num_timesteps=20"],
    ["schedule=flow", "parameterization=velocity", "objective=simple", "times=logit_normal"],
    DIT,
]


def on_gpu(tmp_path, *words):
    """The configuration of a tiny run there; TINY's network is the default one."""
    kept = [word for word in GPU if DIT[0] not in words or not word.startswith("network.")]
    return composed(*kept, *words, f"paths.cache={tmp_path / 'cache'}")


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("words", WAYS_TO_TRAIN, ids=" ".join)
def test_from_step_to_step_nothing_waits(tmp_path, monkeypatch, words):
    """Lightning's loop, the data, forward, backward, clipping, the optimizer and the averages: torch itself raises an error for a wait."""
    seen = []

    def watch(self, *_):
        seen.append(self.global_step)
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.global_step < STEPS - 1 else "default")

    monkeypatch.setattr(DiffusionModule, "on_train_batch_start", watch, raising=False)
    try:
        found = train(on_gpu(tmp_path, *LATE, *words), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert STEPS - 1 in seen and torch.tensor(found["loss"]).isfinite()


@pytest.mark.parametrize("words", [[], ["precision=bf16-mixed"], DIT], ids=" ".join)
def test_deterministic_is_bit_for_bit_again_and_resumed(tmp_path, words):
    words = ["deterministic=true", *words]
    for name in ("whole", "again"):
        train(on_gpu(tmp_path, *words), tmp_path / name)
    assert same(tmp_path / "whole", tmp_path / "again")
    train(on_gpu(tmp_path, *words, "steps=3"), tmp_path / "parts")
    assert not same(tmp_path / "whole", tmp_path / "parts")
    train(on_gpu(tmp_path, *words, f"resume={tmp_path / 'parts'}"), tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_half_precision_clips_what_float32_clips(tmp_path):
    words = ["grad_clip=0.05", "steps=30", "warmup=1", "optimizer.lr=0.003"]
    norms = {of: train(on_gpu(tmp_path, *words, f"precision={of}"), tmp_path / of)["gradient_norm"] for of in ("32-true", "16-mixed")}
    assert norms["16-mixed"] == pytest.approx(norms["32-true"], rel=0.5)  # the first steps of 16-mixed are left out; the scale is 65536


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, its model on the CPU and on the GPU."""
    folder = tmp_path_factory.mktemp("cuda")
    train(on_gpu(folder, "steps=50"), folder / "run")
    return checkpoint.load(folder / "run"), checkpoint.load(folder / "run").to("cuda")


def test_images_do_not_depend_on_the_batch(run):
    _, model = run
    whole, parts = (model.recipe(batch_size=size)(range(12), torch.arange(12) % 4).images.int() for size in (12, 5))
    assert (whole - parts).abs().max() <= 1  # the network's rounding may move a pixel to the next level
    assert torch.equal(whole, model.recipe(batch_size=12)(range(12), torch.arange(12) % 4).images.int())


def test_the_gpu_computes_what_the_cpu_computes(run):
    here, there = run
    x, t, cond = torch.randn(4, 1, 8, 8), torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64), torch.arange(4)
    with torch.no_grad():
        expected, found = here.denoiser(x, t, cond), there.denoiser(x.cuda(), t.cuda(), cond.cuda())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_two_gpus_train_what_one_trains(tmp_path):
    words = ["steps=10", "data.device_resident=true"]
    train(on_gpu(tmp_path, *words), tmp_path / "one")
    train(on_gpu(tmp_path, *words, "trainer=ddp", "trainer.accelerator=cuda", "trainer.devices=2"), tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
