"""The numbers of a run that was killed, by SIGKILL between two checkpoints, and resumed: those of a run that was never killed."""

import csv
import json
import multiprocessing
import os
import signal
import time

import pytest
from inside import lines

from diffusion.support import files
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

CLOCK = {"time", "since", "images_per_second", "evaluation_seconds"}  # what a clock says is another each time
CUT = -1  # in place of a step
WORDS = ["log_every=5", "checkpoint_every=4", "eval_every=8", "metric=[memorization]", "metric.n=8", "metric.groups=0"]


@pytest.fixture
def config(tiny):
    """`config(folder, resume)`: of a run that writes into all the files there are."""

    def made(folder, resume=None):
        where = {"save_dir": str(folder), "version": ""}
        csv = {"_target_": "diffusion.training.loggers.CSV", "name": "csv", **where}
        tensorboard = {
            "_target_": "pytorch_lightning.loggers.TensorBoardLogger",
            "name": "tensorboard",
            "default_hp_metric": False,
            **where,
        }
        return tiny(*WORDS) | {"logger": {"csv": csv, "tensorboard": tensorboard | {"default_hp_metric": False}}, "resume": resume}

    return made


CLEAN = multiprocessing.get_context("forkserver")  # a process that has no threads makes the others, and has imported what they need
CLEAN.set_forkserver_preload(["diffusion.training.run"])


def killed(config, folder, step):
    """Train in another process, which kills itself in this step, or while it cuts numbers: no code of ours runs after that."""
    time.sleep(1.1)  # TensorBoard's files are read in the order of the seconds in their names
    child = CLEAN.Process(target=dying, args=(config, folder, step))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def dying(config, folder, step):
    """In that process."""
    real = DiffusionModule.optimizer_step

    def optimizer_step(self, *args, **kwargs):
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *args, **kwargs)

    DiffusionModule.optimizer_step = optimizer_step
    if step == CUT:
        files._fsync = lambda path: os.kill(os.getpid(), signal.SIGKILL) if path.name == "metrics.jsonl" else None
    train(config, folder)


def timeless(rows):
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def in_csv(folder):
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def in_tensorboard(folder):
    """Its scalars as a reader shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return sorted((tag, event.step, event.value) for tag in set(events.Tags()["scalars"]) - CLOCK for event in events.Scalars(tag))


@pytest.mark.xdist_group("killed")
def test_no_number_is_lost_or_written_twice(config, tmp_path):
    """Killed twice, once in the midst of a line; the running means since the last log are those of all steps."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(whole), whole)
    killed(config(parts), parts, 7)
    for file in (parts / "metrics.jsonl", parts / "csv" / "metrics.csv"):
        with open(file, "a") as half:
            half.write('{"step": 7, "lo')
    (parts / "checkpoints" / ".last.ckpt.abc.tmp").mkdir()  # of a writer that was killed
    killed(config(parts, str(parts)), parts, CUT)
    assert list(parts.glob(".metrics.jsonl.*.tmp"))
    killed(config(parts, str(parts)), parts, 11)
    time.sleep(1.1)
    train(config(parts, str(parts)), parts)
    assert timeless(lines(parts / "metrics.jsonl")) == timeless(lines(whole / "metrics.jsonl"))
    assert timeless(in_csv(parts)) == timeless(in_csv(whole))
    assert in_tensorboard(parts) == in_tensorboard(whole)
    assert not list(parts.rglob("*.tmp"))


@pytest.mark.xdist_group("killed")
def test_a_run_that_had_saved_nothing_begins_its_numbers_anew(config, tmp_path):
    early = config(tmp_path / "run")
    early["callbacks"]["checkpoints"]["every"] = 100
    early["callbacks"] = {name: callback for name, callback in early["callbacks"].items() if name in ("losses", "checkpoints")}
    killed(early, tmp_path / "run", 5)
    assert in_csv(tmp_path / "run") and not (tmp_path / "run" / "checkpoints").exists()
    train(config(tmp_path / "run"), tmp_path / "run")
    found = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert found == sorted(set(found)) and [int(row["step"]) for row in in_csv(tmp_path / "run") if row["loss"]] == found


def test_a_checkpoint_of_an_older_version_leaves_the_numbers(config, tmp_path):
    """It does not say where they stood."""
    from diffusion.checkpoint import read_checkpoint, write_checkpoint

    killed(config(tmp_path / "run"), tmp_path / "run", 7)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    write_checkpoint({key: value for key, value in read_checkpoint(last).items() if key != "lines"}, last)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    train(config(tmp_path / "run", str(tmp_path / "run")), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith(before)
    assert json.loads(before.splitlines()[-1])["step"] <= 7
