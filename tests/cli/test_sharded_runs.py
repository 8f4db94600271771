"""trainer=fsdp as a user types it: two processes train in parts, and every command goes on with what they wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT, SMALL, command, succeeded

from diffusion.checkpoint import load, read, read_checkpoint
from diffusion.shards import Parts

FSDP = ["trainer=fsdp", "trainer.devices=2", "logger=none", "name=run"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with an evaluation whose images do not divide by two, dropout, accumulated batches, and post-hoc snapshots."""
    place = tmp_path_factory.mktemp("runs")
    words = ["ema=posthoc", "network.dropout=0.2", "network.checkpointing=true", "accumulate=2", "callbacks.samples.rows=3"]
    words += ["sample_batch_size=4", "dataset.holdout=0.1", f"paths.runs={place}", f"paths.cache={place / 'cache'}"]
    succeeded(command("train.py", *SMALL, *FSDP, *words))
    return place / "run"


@pytest.mark.xdist_group("sharded commands")
def test_one_process_has_the_weights_of_all(run):
    """Bit for bit those in the parts, which are halves; and samples of them."""
    last = run / "checkpoints/last.ckpt"
    parts = read_checkpoint(last, whole=False)["ema"]["shadow"]
    weights = dict(load(run).denoiser.named_parameters())
    assert parts.keys() == weights.keys() and all(isinstance(value, Parts) for value in parts.values())
    for name, value in parts.items():
        assert torch.equal(weights[name], torch.cat(value.parts)), name
    assert (run / "samples/main-step=00000006.png").exists()
    succeeded(command("sample.py", f"ckpt={run}", "n=3", "grid.steps=2"))
    assert [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "heldout" in line] == [3, 6]


@pytest.mark.xdist_group("sharded commands")
@pytest.mark.slow
def test_every_command_goes_on_with_it(run, tmp_path):
    """An average of a length, a metric, a training of one process, one of two that hold all, and one that begins with its weights."""
    folder = shutil.copytree(run, tmp_path / "run")
    succeeded(command("-m", "diffusion.average", folder, "0.08"))
    succeeded(command("sample.py", f"ckpt={folder}/checkpoints/ema=0.08.ckpt", "n=2", "grid.steps=2"))
    words = ["metric=fd_digits", "metric.n=20", "metric.groups=0", "grid.steps=2"]
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={folder}", *words))
    succeeded(command("train.py", f"resume={folder}", "steps=8", "trainer.strategy=auto", "trainer.devices=1"))
    assert "shards" not in torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    succeeded(command("train.py", f"resume={shutil.copytree(run, tmp_path / 'other')}", "steps=8", "trainer.strategy=ddp"))
    assert read(tmp_path / "other")[1]["global_step"] == 8
    begun = ["trainer=cpu", "logger=none", "name=begun", f"init.ckpt={run}", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    assert "(100.0 % of the weights) begin as in" in succeeded(command("train.py", *SMALL, *begun))


REFUSED = {
    "autoencoder": (["task=autoencoder"], "an autoencoder"),
    "ssm": (["objective=ssm", "schedule=ve", "parameterization=score", "network.channels=8"], "objective SSM, which differentiates"),
    "edm2": (["objective=edm2", "schedule=edm", "parameterization=edm", "network.channels=8"], "objective Uncertainty, which has weights"),
    "compiled": (["compile=true", "network.channels=8"], "compile=true"),
}


@pytest.mark.parametrize("case", [case if case == "edm2" else pytest.param(case, marks=pytest.mark.slow) for case in REFUSED])
def test_what_it_does_not_go_with(case, tmp_path):
    """Before anything is written."""
    words, said = REFUSED[case]
    small = [word for word in SMALL if not word.startswith(("network", "callbacks"))]
    result = command("train.py", *small, *FSDP, *words, f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}")
    assert result.returncode == 1 and f"trainer=fsdp does not go with {said}" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def family(pid: int) -> list[int]:
    """A process and those that it has started."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(other for child in children for other in family(child))]


@pytest.mark.slow
def test_killed_in_the_middle_of_writes(tmp_path):
    """By SIGKILL, again and again, while a checkpoint is written after every step: the run's folder always has one that is whole."""
    words = [*(word for word in SMALL if not word.startswith(("steps", "checkpoint", "eval", "log"))), *FSDP, "eval_every=100000"]
    words += ["steps=100000", "checkpoint_every=1", "log_every=100000", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    last, before = tmp_path / "run/checkpoints/last.ckpt", 0
    for moment in range(4):
        line = [sys.executable, "train.py", *words, "resume=auto"]
        process = subprocess.Popen(line, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        until, seen = time.monotonic() + 200, last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == seen:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5 + 0.37 * moment)
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        step = read(tmp_path / "run")[1]["global_step"]
        assert step > before
        before = step
    assert len(list((tmp_path / "run/checkpoints/shards").iterdir())) <= 4  # of two checkpoints, and of what was being written
