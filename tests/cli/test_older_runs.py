"""A run's folder of an older version (tests/data/README.md says which) is sampled, measured and resumed; and a seed's images stay."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, command, succeeded
from composing import composed

from diffusion.checkpoint import load, read_config
from diffusion.grids import Trailing
from diffusion.support.errors import UserError
from diffusion.support.moved import brought_up
from diffusion.training.run import train

OLD = ROOT / "tests/data/run-51fd24b"
EXPECTED = np.load(OLD / "expected.npz")


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(OLD, tmp_path / "run")


def levels_apart(images, expected):
    """The largest difference in levels; a processor that sums in another order may move one across a rounding."""
    return np.abs(images.astype(int) - expected).max()


@pytest.mark.xdist_group("older")
def test_it_is_measured_and_resumed_as_it_would_have_been(run, tmp_path):
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={run}", f"out={tmp_path / 'measured.jsonl'}", "device=cpu"))
    measured = json.loads((tmp_path / "measured.jsonl").read_text())
    recorded = next(line for line in before if line["step"] == 20 and "passport" in line)
    assert measured["fd-digits@100"] == pytest.approx(recorded["fd-digits@100"], rel=1e-6)
    assert measured["passport"]["id"] == recorded["passport"]["id"]

    succeeded(command("train.py", f"resume={run}"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][len(before) :]
    assert [[line["step"], pytest.approx(line["loss"], rel=1e-5)] for line in lines if "loss" in line] == EXPECTED["losses"].tolist()
    (last,) = [line for line in lines if "passport" in line]
    assert last["fd-digits@100"] == pytest.approx(EXPECTED["distance"].item(), rel=1e-4)

    succeeded(command("sample.py", f"ckpt={run}", "n=8", "seed=5", "classes=[3,7]", f"out={tmp_path / 'out'}", "device=cpu"))
    made = np.load(tmp_path / "out/samples.npz")
    assert levels_apart(made["images"], EXPECTED["run"]) <= 1
    assert (made["seeds"] == EXPECTED["run_seeds"]).all() and (made["labels"] == EXPECTED["run_labels"]).all()


@pytest.mark.xdist_group("older")
def test_the_embedded_default_makes_the_same_images(tmp_path):
    config = composed("steps=30", "metric=none", "trainer.accelerator=cpu", "eval_every=1000", f"paths.cache={tmp_path / 'cache'}")
    train(config, tmp_path / "run")
    model = load(tmp_path / "run")
    recipe = model.recipe(config["sampler"], Trailing(50), config["guidance"])  # as many steps as it had then
    images = recipe(range(8), torch.arange(8)).images.numpy()
    assert levels_apart(images, EXPECTED["default"]) <= 2  # 30 steps of training lie between


def test_what_moved_is_said_in_todays_words():
    """Nothing of the old configuration names what is gone, and bringing it up twice is bringing it up once."""
    config = read_config(OLD)
    assert brought_up(config) == config
    assert "denoiser" not in config and config["task"] == {"_target_": "diffusion.denoiser.Denoiser"}
    assert config["network"].keys() & {"in_channels", "out_channels", "image_size", "num_classes"} == set()
    assert config["metric"]["fd_digits"]["n"] == 100 and config["guidance"]["classifier_free"]["scale"] == 2
    source = brought_up(yaml.safe_load((OLD / "source.yaml").read_text()))
    assert source["metric"]["fd_digits"]["n"] == 100 and source["guidance"]["classifier_free"]["scale"] == 2
    assert source["lr_schedule"]["total"] == "${steps}"


def test_a_seeds_noise_is_that_of_torch():
    """Row by row, on the CPU."""
    from diffusion.noise import SeededNoise

    z = SeededNoise([3, 2**31], "cpu")(torch.empty(2, 4))
    for row, seed in zip(z, (3, 2**31), strict=True):
        assert torch.equal(row, torch.randn(4, generator=torch.Generator().manual_seed(seed)))


KEYS = (
    "dataset",
    "codec",
    "conditions",
    "task",
    "network",
    "schedule",
    "parameterization",
    "objective",
    "sampler",
    "grid",
    "guidance",
    "metric",
)


@pytest.mark.parametrize("key", [*KEYS, "batch_size", "accumulate", "sample_batch_size"])
def test_a_damaged_configuration_is_a_sentence(key, run):
    """A part that is gone, null, or of another kind."""
    whole = read_config(run)
    for value in (None, [1], "x", {"a": 1}):
        (run / "config.yaml").write_text(yaml.safe_dump(whole | {key: value}))
        with pytest.raises(UserError, match=f"config.yaml does not say what {key} is"):
            load(run)
    (run / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in whole.items() if k != key}))
    with pytest.raises(UserError, match=r"config.yaml"):
        load(run)
