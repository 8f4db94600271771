"""What a run asks of the machine: refused at the start with one sentence, or done as it is said."""

import logging
import os

import pytest
import torch
from composing import TINY, composed
from inside import measured, sampled, trained
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.trainer.connectors import accelerator_connector

from diffusion.objectives import SSM, Uncertainty
from diffusion.support import devices
from diffusion.support.errors import UserError
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

REFUSED = [
    (["precision=16-mixed"], "precision=16-mixed trains on a GPU"),
    (["precision=bf16-true"], "precision=bf16-true"),
    (["precision=16-true"], "precision=16-true"),
    (["precision=64-true"], "precision=64-true"),
    (["trainer.precision=bf16-mixed"], "say precision=bf16-mixed"),
    (["trainer.max_steps=5"], "say steps=5"),
    (["trainer.deterministic=true"], "say deterministic=True"),
    (["trainer.accelerator=mps"], "no float64.*say trainer.accelerator=cpu"),
    (["trainer=ddp"], "trainer.devices=-1 means all GPUs.*say trainer.devices=N for N processes"),
    (["trainer.devices=0"], "trainer.devices=0 is no number of processes on a CPU"),
    (["trainer.devices=two"], "trainer.devices=two is no number of processes on a CPU"),
    (["trainer.devices=[0,1]"], "is no number of processes on a CPU: say trainer.devices=1, or more"),
    (["compile=blocks", "objective=ssm"], "compile=blocks does not go with objective SSM.*say compile=off"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tiny, tmp_path, words, sentence):
    with pytest.raises((UserError, ValueError), match=sentence):
        train(tiny(*words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_refused_alike(tmp_path):
    words = [word for word in TINY if "samples" not in word]
    with pytest.raises(UserError, match="precision=64-true"):
        train(composed(*words, f"paths.cache={tmp_path / 'cache'}", "task=classifier", "precision=64-true"), tmp_path / "run")


def test_a_wrapped_objective_derives_twice_if_the_inner_one_does():
    assert Uncertainty(SSM()).derives_twice


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("machine") / "run", "steps=2", "metric=memorization", "metric.n=8", "metric.groups=0")


@pytest.mark.parametrize("word", ["foo", "cuda:99", "mps", "meta"])
def test_a_device_that_is_not_there(run, tmp_path, word):
    for command in (sampled, measured):
        with pytest.raises(UserError, match=f"device={word} cannot be used"):
            command(run, tmp_path / "out", f"device={word}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["8-true", "64", "16"])
def test_a_precision_that_images_are_not_made_in(run, tmp_path, precision):
    for command in (sampled, measured):
        with pytest.raises(ValueError, match=f"precision={precision} is not one"):
            command(run, tmp_path / "out", f"precision={precision}")


def test_an_apple_gpu_is_passed_over_and_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert devices.device("auto") == torch.device("cpu") and devices.accelerator("auto") == "cpu"
    assert caplog.text.count("no float64, in which times and noise levels are computed; the CPU is used.") == 2
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu cannot be used: Apple's GPU"):
        devices.accelerator("gpu")


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.device("auto") == torch.device("cpu") and devices.accelerator("auto") == "cpu" and not caplog.text


def test_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled(tiny, tmp_path, monkeypatch):
    """16-mixed with a fused optimizer on the CPU, where Lightning itself would take bf16: as float32, within half precision."""
    mixed = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))  # small enough for no step to be left out
    config = tiny("steps=6", "warmup=1", "grad_clip=0.05", "optimizer.lr=0.003", "eval_every=100")
    expected = train(config, tmp_path / "float32")
    monkeypatch.setattr(accelerator_connector._AcceleratorConnector, "_check_and_init_precision", lambda self: mixed)
    found = train(config, tmp_path / "mixed")
    assert expected["gradient_norm"] > 0.5  # clipped a lot
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.02)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.005)


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic(tiny, tmp_path, monkeypatch, wanted):
    """What CUDA needs in order to compute the same bits again is set in the process that trains."""
    seen = []
    step = DiffusionModule.training_step

    def looked_at(self, *args):
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), not torch.backends.cudnn.benchmark, "CUBLAS_WORKSPACE_CONFIG" in os.environ)
        )
        return step(self, *args)

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(DiffusionModule, "training_step", looked_at)
    try:
        train(tiny("steps=1", f"deterministic={wanted}"), tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(seen) == {(wanted,) * 3}
    assert f"deterministic: {str(wanted).lower()}" in (tmp_path / "run" / "config.yaml").read_text()
