"""Signals to trainings of two processes: all leave, soon and with nothing lost, whichever of them was told. The processes are real ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
WORDS = [
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.channels=1",
    "network.channels=8",
    "batch_size=8",
    "accumulate=2",
    "steps=100000",
    "checkpoint_every=100000",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "logger=none",
    "name=run",
]
TRAINING = ["eval_every=100000", "log_every=4"]
EVALUATION = ["eval_every=4", "log_every=3", "grid.steps=1000", "sample_batch_size=1"]  # of minutes
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def until(found, process, seconds=120):
    limit = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.1)


def left(folder, words, signum, told, launcher=()):
    """Train until there are numbers of step 4 (or a checkpoint, which is saved before an evaluation), tell some of the processes, and
    return (exit code, output, step of the checkpoint) when all have left. `told` chooses of [the first, those that it started]."""
    line = [sys.executable, *launcher, "train.py", *WORDS, *words, f"paths.runs={folder}", f"paths.cache={folder / 'cache'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    numbers, checkpoint = folder / "run" / "metrics.jsonl", folder / "run" / "checkpoints" / "last.ckpt"
    try:
        until(lambda: numbers.exists() and '"step": 4,' in numbers.read_text() if words is TRAINING else checkpoint.exists(), process)
        everyone = [process.pid, *descendants(process.pid)]
        for pid in everyone[told]:
            os.kill(pid, signum)
        output = process.communicate(timeout=120)[0]
    finally:
        for pid in descendants(process.pid) if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone[1:]), subprocess.Popen(["sleep", "60"]), 60)
    return process.returncode, output, read_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")["global_step"]


FIRST, OTHERS, ALL = slice(1), slice(1, None), slice(None)
CASES = {
    "the first, in training": (TRAINING, signal.SIGINT, FIRST),
    "the first, in an evaluation": (EVALUATION, signal.SIGTERM, FIRST),
    "the other, in training": (TRAINING, signal.SIGTERM, OTHERS),
    "the other, in an evaluation": (EVALUATION, signal.SIGTERM, OTHERS),
    "both, in training": (TRAINING, signal.SIGTERM, ALL),
    "both, in an evaluation": (EVALUATION, signal.SIGTERM, ALL),
}
SLOW = {case: [] if case == "the first, in an evaluation" else [pytest.mark.slow] for case in CASES}


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW[case]) for case in CASES])
def test_ranks_that_lightning_started(case, tmp_path):
    words, signum, told = CASES[case]
    code, output, step = left(tmp_path, words, signum, told)
    assert code == 128 + signum, output
    assert step == 4 if words is EVALUATION else step >= 4
    assert output.count("go on with: python train.py resume=") == 1 and "Traceback" not in output, output
    if words is EVALUATION:
        goes_on(tmp_path / "run")


def goes_on(run):
    """The evaluation that was left is made, before which both ranks say what they have summed and not logged."""
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["meter"]["sums"] is not None
    line = [sys.executable, "train.py", f"resume={run}", "steps=6", "grid.steps=2", "sample_batch_size=64"]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line) for line in numbers] == [(1, True), (3, True), (4, False), (6, True), (6, False)]


@pytest.mark.slow
@pytest.mark.parametrize("words", [TRAINING, EVALUATION], ids=["training", "evaluation"])
@pytest.mark.parametrize("told", [FIRST, slice(2, None)], ids=["torchrun", "one rank"])
def test_ranks_of_torchrun(words, told, tmp_path):
    """Torchrun's own exit code is 1, and it prints a traceback of its own."""
    code, output, step = left(tmp_path, words, signal.SIGTERM, told, TORCHRUN)
    assert code == 1 and step >= 4
    assert output.count("go on with: python train.py resume=") == 1, output
