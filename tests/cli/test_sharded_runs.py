"""trainer=fsdp as a user types it: two processes train in parts, measure, and every command goes on with what they wrote."""

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
import yaml
from commands import ROOT, SMALL, command, succeeded

from diffusion.checkpoint import load, read, read_checkpoint
from diffusion.shards import Parts

FSDP = ["trainer=fsdp", "trainer.devices=2", "logger=none", "name=run"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LEARNING = ["optimizer.lr=0.003", "warmup=0"]  # so fast that six steps show
MEASURED = ["metric=[fd_digits,nll_vlb]", "metric.fd_digits.n=21", "metric.groups=0", "metric.nll_vlb.images=7"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with samples, metrics of images and of the model, and losses of held-out items at one step, none of which divides by two;
    dropout, accumulated batches, and post-hoc snapshots."""
    place = tmp_path_factory.mktemp("runs")
    words = ["ema=posthoc", "network.dropout=0.2", "network.checkpointing=true", "accumulate=2", "callbacks.samples.rows=3"]
    words += ["sample_batch_size=4", "dataset.holdout=0.1", f"paths.runs={place}", f"paths.cache={place / 'cache'}"]
    succeeded(command("train.py", *SMALL, *FSDP, *MEASURED, *LEARNING, "schedule.num_timesteps=20", *words))
    return place / "run"


def lines(run: Path, key: str) -> dict[int, dict]:
    """The lines of a run's numbers that have this key, by step, without what the clock says."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: {name: value for name, value in line.items() if name != "time"} for line in found if key in line}


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
    assert list(lines(run, "heldout")) == [3, 6]


@pytest.mark.xdist_group("sharded commands")
def test_what_it_measured_is_what_one_process_measures(run, tmp_path):
    """Of the same weights, whose hash says that all of them were there."""
    measured_again(shutil.copytree(run, tmp_path / "run"), {"fd-digits@21": 1e-6, "nll-vlb@7": 1e-6}, [3, 6])


def passport(line: dict) -> list[str]:
    """What two numbers of the same weights have in common."""
    return [line["passport"][key] for key in ("id", "weights")]


def measured_again(run: Path, numbers: dict[str, float], steps: list[int]) -> None:
    """One process measures the last checkpoint: the numbers that were measured at these steps, up to these relative tolerances, and with
    the same passport."""
    before = {key: lines(run, key) for key in numbers}
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={run}"))
    for key, tolerance in numbers.items():
        assert list(before[key]) == steps
        then, now = before[key][steps[-1]], lines(run, key)[steps[-1]]
        assert passport(then) == passport(now) and "trained" in now
        assert then[key] != before[key][steps[0]][key] and now[key] == pytest.approx(then[key], rel=tolerance)


LATE = ["metric.nll_ode.t_min=0.2"]  # the rest takes the longest
ALONE = {
    "images": (["metric=memorization", "metric.n=21", "metric.groups=0", "callbacks.samples=null"], {"memorized-pixels@21/distance": 1e-6}),
    "no classes": (["metric=fd_digits", "metric.n=21", "metric.groups=0", "conditions=none", "guidance=none"], {"fd-digits@21": 1e-6}),
    "gradients": (["metric=nll_ode", "metric.nll_ode.images=5", *LATE, "callbacks.samples=null"], {"nll-ode@5": 1e-3}),
    "classifier": (["metric=fd_digits", "metric.n=21", "metric.groups=0", "guidance=[classifier,clip]"], {"fd-digits@21": 1e-6}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ALONE)
def test_each_way_to_measure(case, tmp_path):
    """At the start, between, at the end and after a resumption: the numbers of the run of one process, up to what six steps make of the
    rounding, and those that one process measures of the weights; `nll_ode`, which differentiates the network, up to what its
    solver makes of it, which is 2e-4 between batches of one process too."""
    words, numbers = ALONE[case]
    words = [*SMALL, *LEARNING, "logger=none", *words, f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    if case == "classifier":
        plain = [word for word in SMALL if not word.startswith("callbacks")]
        succeeded(command("train.py", *plain, *words[-2:], "task=classifier", "name=classifier", "trainer=fsdp", "trainer.devices=2"))
        words += [f"guidance.ckpt={tmp_path / 'classifier'}"]
    succeeded(command("train.py", *words, "eval_at_start=true", "name=alone"))
    launcher, two = (TORCHRUN, FSDP[:1]) if case == "no classes" else ((), FSDP[:2])
    succeeded(command("train.py", *words, "eval_at_start=true", "name=run", *two, launcher=launcher))
    for key in numbers:
        alone, parts = (lines(tmp_path / name, key) for name in ("alone", "run"))
        assert list(alone) == list(parts) == [0, 3, 6] and passport(alone[0]) == passport(parts[0])
        for step, line in alone.items():
            assert parts[step][key] == pytest.approx(line[key], rel=2e-3 if step else 1e-6)
    succeeded(command("train.py", f"resume={tmp_path / 'run'}", "steps=9", "trainer.devices=2"))
    measured_again(tmp_path / "run", numbers, [0, 3, 6, 9])


@pytest.mark.xdist_group("sharded commands")
def test_another_trainer_goes_on_with_it(run, tmp_path):
    """In the place of the run's own, with what was said of that; it is the run's from then on."""
    folder = shutil.copytree(run, tmp_path / "run")
    succeeded(command("train.py", f"resume={folder}", "trainer=cpu", "steps=7", "eval_every=50", "callbacks.samples.every=50"))
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 7 and "shards" not in content
    config, words = (yaml.safe_load((folder / name).read_text()) for name in ("config.yaml", "words.yaml"))
    assert config["trainer"]["devices"] == 1 and config["trainer"]["strategy"] == "auto" and config["trainer"]["max_steps"] == 7
    said = {key: word for key, word in words["typed"].items() if key.startswith("trainer")}
    assert said == {"trainer": "cpu"} and words["choices"]["trainer"] == "cpu"
    said = succeeded(command("train.py", f"resume={folder}"))
    assert "nothing left to do" in said and yaml.safe_load((folder / "config.yaml").read_text()) == config


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
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    succeeded(command("train.py", f"resume={shutil.copytree(run, tmp_path / 'other')}", "steps=8", *ddp))
    assert read(tmp_path / "other")[1]["global_step"] == 8
    begun = ["trainer=cpu", "logger=none", "name=begun", f"init.ckpt={run}", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    assert "(100.0 % of the weights) begin as in" in succeeded(command("train.py", *SMALL, *begun))


REFUSED = {
    "autoencoder": (["task=autoencoder"], "an autoencoder"),
    "ssm": (["objective=ssm", "schedule=ve", "parameterization=score", "network.channels=8"], "objective SSM, which differentiates"),
    "edm2": (["objective=edm2", "schedule=edm", "parameterization=edm", "network.channels=8"], "objective Uncertainty, which has weights"),
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
