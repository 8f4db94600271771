"""The commands that README and the issue name, run as a user runs them."""

import json

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, SMALL, command, succeeded
from PIL import Image


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    succeeded(command("train.py", *SMALL, "eval_at_start=true", "metric=fd_digits", "metric.n=33", f"paths.runs={folder}", "name=run"))
    return folder / "run"


@pytest.mark.xdist_group("commands")
def test_a_runs_folder(run):
    assert {"config.yaml", "checkpoints", "samples", "metrics.jsonl", "csv", "tensorboard"} <= {p.name for p in run.iterdir()}
    records = lines(run)
    assert [r["step"] for r in records if "fd-digits@33" in r] == [0, 3, 6]
    passport = next(r["passport"] for r in records if "fd-digits@33" in r)
    assert {"extractor", "reference", "sampler", "nfe", "guidance", "ema", "seeds", "step", "code", "quantisation"} <= passport.keys()
    assert passport["nfe"] == 3 and passport["sampler"]["name"] == "DDPM"
    losses = next(r for r in records if "loss" in r)
    assert {"loss/simple", "loss/vlb", "gradient_norm", "learning_rate", "images_per_second", "ema_decay"} <= losses.keys()
    assert any(key.startswith("loss/t") for key in losses)
    header = (run / "csv/metrics.csv").read_text().splitlines()[0]
    assert "fd-digits@33" in header and "loss" in header
    assert Image.open(run / "samples/main-step=00000006.png").size[0] > 3 * 32


@pytest.mark.xdist_group("commands")
def test_sample(run, tmp_path):
    """Images, grid.png, samples.npz and a GIF; the same seeds in another batch size and order of classes give the same images."""
    base = ["sample.py", f"ckpt={run}", "sampler=ddim", "grid.steps=4", "classes=[2]", "guidance.scale=2"]
    succeeded(command(*base, "n=6", "sample_batch_size=4", "trajectory=true", f"out={tmp_path / 'a'}"))
    succeeded(command(*base, "n=3", "seed=3", "sample_batch_size=1", f"out={tmp_path / 'b'}"))
    a, b = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    assert a["images"].shape == (6, 8, 8, 1) and a["images"].dtype == np.uint8 and (a["labels"] == 2).all()
    assert np.abs(a["images"][3:].astype(int) - b["images"]).max() <= 1  # rounding of a batched product may move one level
    assert len(list((tmp_path / "a").glob("0*.png"))) == 6 and (tmp_path / "a/grid.png").exists()
    assert Image.open(tmp_path / "a/trajectory.gif").n_frames == 4
    assert np.array_equal(np.array(Image.open(tmp_path / "a/000000.png"))[..., 0], a["images"][0, ..., 0])


@pytest.mark.xdist_group("commands")
def test_resume_by_command(run):
    before = yaml.safe_load((run / "words.yaml").read_text())
    succeeded(command("train.py", f"resume={run}", "steps=8", "optimizer.lr=0.003", "trust=[mine]"))
    assert {"metric": "fd_digits", "metric.n": "33"}.items() <= before["typed"].items() and before["choices"]["schedule"] == "cosine"
    after = before["typed"] | {"steps": "8", "optimizer.lr": "0.003"}  # and not what was allowed
    said = yaml.safe_load((run / "words.yaml").read_text())
    assert said.pop("hash") != before["hash"] and said == {"typed": after, "choices": before["choices"]}
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    assert lines(run)[-1]["step"] == 8


def test_wandb_offline(tmp_path):
    words = ["logger=wandb", "logger.offline=true", f"paths.runs={tmp_path}", "name=run"]
    succeeded(command("train.py", *SMALL, *words, env={"WANDB_MODE": "offline"}))
    assert list((tmp_path / "run").rglob("offline-run-*"))


def test_several_samplers_and_another_schedule(tmp_path):
    """Sampling with several samplers at once, as a dict, each with a grid of its own."""
    several = [
        "+sampler@samplers.fast.sampler=ddim",
        "+grid@samplers.fast.grid=leading",
        "samplers.fast.grid.steps=2",
    ]
    words = ["schedule=linear", "objective=simple", "metric=fd_digits", "metric.n=20", *several]
    succeeded(command("train.py", *SMALL, *words, f"paths.runs={tmp_path}", "name=run", "logger=none"))
    last = {key for record in lines(tmp_path / "run") for key in record}
    assert {"fd-digits@20", "fd-digits@20/fast"} <= last
    assert {p.name.split("-")[0] for p in (tmp_path / "run/samples").iterdir()} == {"main", "fast"}


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.parametrize(
    "launcher, sweep",
    [
        pytest.param((), False, id="run-trainer.devices"),
        pytest.param(TORCHRUN, False, id="run-torchrun", marks=pytest.mark.slow),
        pytest.param((), True, id="sweep-trainer.devices", marks=pytest.mark.slow),
        pytest.param(TORCHRUN, True, id="sweep-torchrun"),
    ],
)
def test_two_processes(tmp_path, launcher, sweep):
    """One folder for each job and no other; exactly n images over the ranks, and the number is that of one process. How many processes
    there are is known where torchrun has started them."""
    words = [*SMALL, "metric=fd_digits", "metric.n=33", f"paths.runs={tmp_path}", "logger=none"]
    words += ["trainer=ddp"] if launcher else ["trainer.devices=2"]
    words = ["-m", *words, "seed=1,2"] if sweep else [*words, "seed=1"]
    succeeded(command("train.py", *words, launcher=launcher))
    runs = sorted(p for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith("."))
    assert len(runs) == (2 if sweep else 1)
    for folder in runs:
        assert [r["step"] for r in lines(folder) if "fd-digits@33" in r] == [3, 6]
        assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    if not sweep and not launcher:
        alone = [*SMALL, "metric=fd_digits", "metric.n=33", "seed=1", f"paths.runs={tmp_path}", "name=alone", "logger=none"]
        succeeded(command("train.py", *alone))
        one, two = (next(r["fd-digits@33"] for r in lines(f) if "fd-digits@33" in r) for f in (tmp_path / "alone", runs[0]))
        assert one == pytest.approx(two, rel=1e-6)
        pictures = [Image.open(f / "samples/main-step=00000003.png").size for f in (tmp_path / "alone", runs[0])]
        assert pictures[0] == pictures[1]


@pytest.mark.skipif(not (ROOT / "../shared/data/cifar10").exists(), reason="the real CIFAR-10 is not here")
def test_the_command_this_project_exists_for(tmp_path):
    """python train.py dataset=cifar10 schedule=cosine, with a small network and few steps, on the real data."""
    words = ["dataset=cifar10", "schedule=cosine", "dataset.root=../shared/data", "network.channels=32", "network.multipliers=[1,1]"]
    few = ["steps=2", "batch_size=4", "log_every=1", "eval_every=2", "grid.steps=2", "callbacks.samples.columns=1", "network.res_blocks=1"]
    where = [f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}", "name=run", "logger=none"]
    out = succeeded(command("train.py", *words, *few, *where))
    assert "samples" in out and (tmp_path / "run/samples/main-step=00000002.png").exists()


def test_make_train_shortened(tmp_path):
    """`make train` reaches train.py with its arguments (the set-up is there already, or this test would not run)."""
    import shutil
    import subprocess

    if shutil.which("make") is None or not (ROOT / ".venv/.base").exists():
        pytest.skip("not started by make")
    words = " ".join([*SMALL, f"paths.runs={tmp_path}", "name=run", "logger=none"])
    result = subprocess.run(["make", "train", f"ARGS={words}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "run/checkpoints/last.ckpt").exists(), succeeded(result)
