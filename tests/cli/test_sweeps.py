"""Sweeps as a user types them: a job that fails, a sweep that is killed and goes on, jobs at once, a search."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT, SMALL, command, succeeded

from diffusion.checkpoint import read

WORDS = [*SMALL, "logger=none", "steps=4", "eval_every=4", "callbacks.samples.columns=1"]
METRIC = ["metric=sliced_wasserstein", "metric.n=16", "metric.groups=0"]


def place(tmp_path: Path) -> list[str]:
    return [f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]


def rows(tmp_path: Path, name: str) -> list[dict]:
    with (tmp_path / "runs" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def states(tmp_path: Path, name: str) -> list[str]:
    return [row["state"] for row in rows(tmp_path, name)]


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def runs(tmp_path: Path) -> set[str]:
    return {path.parent.name for path in (tmp_path / "runs").glob("*/config.yaml")}


def test_a_failure_and_the_same_jobs_in_another_order(tmp_path):
    """One job fails and the others are trained; typed again in another order they are found, and what is new has a folder of its own."""
    words = ["train.py", "-m", *WORDS, *place(tmp_path), "name=x"]
    result = command(*words, "seed=1,2", "network.channels=8,7")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == f"error: Of 4 jobs 2 failed, job 2, 3; why is said in {tmp_path / 'runs/x.md'}."[:999]
    assert runs(tmp_path) == {"x-0", "x-1"} and not (tmp_path / "runs/x-2").exists()
    found = rows(tmp_path, "x")
    assert [row["state"] for row in found] == ["done", "done", "failed", "failed"]
    assert all("channels must be even" in row["why"] for row in found[2:]) and all(row["step"] == "4" for row in found[:2])
    assert "| 3 | 7 | 2 |" in result.stdout and "failed: channels must be even" in (tmp_path / "runs/x.md").read_text()
    assert (tmp_path / "runs/dashboard.html").exists()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("x-*/**/*") if file.is_file()}
    said = succeeded(command(*words, "seed=3,2,1"))
    assert "job 1 is done already" in said and "job 2 is done already" in said
    assert states(tmp_path, "x") == ["done", "skipped", "skipped"]
    assert [Path(row["folder"]).name.split("-")[:2] for row in rows(tmp_path, "x")] == [["x", "0"], ["x", "1"], ["x", "0"]]
    assert len(runs(tmp_path)) == 3  # the new one's is not that of job 0 before
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(
    "words, said",
    [
        (["launcher=joblib"], "launcher=joblib is for a sweep: say python train.py -m"),
        (["sweeper=optuna"], "sweeper=optuna is for a sweep"),
        (["-m", "launcher.n_jobs=2", "seed=1,2"], "launcher.n_jobs is not a setting of launcher=basic"),
        (["-m", "launcher=joblib", "launcher.n_jobs=0", "seed=1,2"], "launcher.n_jobs=0 must be between 1"),
        (["-m", "launcher=jobs", "seed=1,2"], "launcher=jobs is not one of the choices basic, joblib, slurm, submitit_local"),
        (["-m", "optimizer.lr=interval(1,2)"], "say sweeper=optuna"),
        (["-m", "sweeper=optuna", "metric=fd_digits"], "sweeper=optuna has nothing to search"),
        (["-m", "sweeper=optuna", "metric=none", "optimizer.lr=interval(1,2)"], "searches by the first metric"),
        (["-m", "sweeper=optuna", "sweeper.n_trials=0", "seed=1,2"], "sweeper.n_trials=0 must be at least 1"),
        (["-m", "sweeper=optuna", "optimizer.lr=interval(2,1)"], "optimizer.lr=interval(2,1) is no interval"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(tmp_path, words, said):
    result = command("train.py", *[word for word in words if word == "-m"], *WORDS, *place(tmp_path), *[w for w in words if w != "-m"])
    assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr
    assert runs(tmp_path) == set()


def test_a_folder_that_cannot_be_made(tmp_path):
    """One sentence, and no job."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file/runs", "/proc/none"):
        result = command("train.py", "-m", *WORDS, f"paths.runs={folder}", "seed=1,2")
        assert result.returncode == 1 and result.stderr.startswith(f"error: paths.runs={folder} cannot be written to")
        assert len(result.stderr.splitlines()) == 1 and "Launching" not in result.stdout


def begun(words: list[str], until, patience: float = 240) -> subprocess.Popen:
    """A command that has come so far."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True, **quiet)
    end = time.monotonic() + patience
    while not until():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    return process


def checkpoint(tmp_path: Path, name: str):
    return lambda: (tmp_path / "runs" / name / "checkpoints/last.ckpt").exists()


LONG = ["steps=40", "eval_every=40", "checkpoint_every=10", "log_every=10"]


@pytest.mark.slow
@pytest.mark.parametrize("signum, state", [(signal.SIGKILL, "running"), (signal.SIGINT, "stopped"), (signal.SIGTERM, "stopped")])
def test_a_sweep_that_was_stopped_goes_on(tmp_path, signum, state):
    """And its runs are those of a sweep that was not stopped, bit for bit; what was done is in the table at once."""
    words = ["train.py", "-m", *WORDS, *LONG, *place(tmp_path), "name=k"]
    process = begun([*words, "seed=1,2,3"], checkpoint(tmp_path, "k-1"))
    process.send_signal(signum)
    assert process.wait(120) == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert states(tmp_path, "k") == ["done", state] and [row["seed"] for row in rows(tmp_path, "k")] == ["1", "2"]
    if state == "stopped":  # where it will go on
        assert int(rows(tmp_path, "k")[1]["step"]) == read(tmp_path / "runs/k-1")[1]["global_step"]
    said = succeeded(command(*words, "seed=2,1,3"))
    assert "job 0 goes on in" in said and "job 1 is done already" in said
    assert states(tmp_path, "k") == ["done", "skipped", "done"]
    assert {Path(row["folder"]).name for row in rows(tmp_path, "k")} == {"k-0", "k-1", "k-2"}
    succeeded(command("train.py", *WORDS, *LONG, *place(tmp_path), f"paths.runs={tmp_path / 'alone'}", "name=whole", "seed=2"))
    parts, whole = weights(tmp_path / "runs/k-1"), weights(tmp_path / "alone/whole")
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_jobs_at_once(tmp_path):
    """Each in a process of its own, with its share of the cores; of two that are the same one is trained, and the other waits for it."""
    words = ["train.py", "-m", *WORDS, *METRIC, *place(tmp_path), "name=j", "launcher=joblib", "launcher.n_jobs=2"]
    alone = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}  # a new process: joblib does not end in a forked one
    result = command(*words, "seed=1,1,7", "network.channels=8,7", env=alone)
    assert result.returncode == 1 and sorted(states(tmp_path, "j")) == ["done", "done", "failed", "failed", "failed", "skipped"]
    assert "Traceback" not in result.stderr
    assert len(runs(tmp_path)) == 2
    lines = [json.loads(line) for line in (tmp_path / "runs/.sweeps/j.jsonl").read_text().splitlines()[1:]]
    assert len({line["pid"] for line in lines}) == 2
    value = next(row for row in rows(tmp_path, "j") if row["state"] == "skipped")
    assert float(value["sliced-wasserstein@16"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_at_once_that_are_stopped(tmp_path, signum, launcher):
    """All have saved when the sweep's process has ended; if it was killed outright they see it themselves."""
    long = ["steps=100000", "eval_every=100000", "checkpoint_every=100000"]
    words = ["train.py", "-m", *WORDS, *long, *place(tmp_path), "name=s", f"launcher={launcher}", "seed=1,2"]

    def both() -> bool:
        return len(list((tmp_path / "runs").glob("s-*/words.yaml"))) == 2

    process = begun(words, both)
    time.sleep(2)
    if signum == signal.SIGINT:  # as a terminal sends it
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    process.wait(120)
    until = time.monotonic() + 60
    while not all(checkpoint(tmp_path, name)() for name in ("s-0", "s-1")) and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(1)
    assert states(tmp_path, "s") == ["stopped", "stopped"]
    steps = [torch.load(tmp_path / "runs" / name / "checkpoints/last.ckpt", weights_only=True)["global_step"] for name in ("s-0", "s-1")]
    assert all(0 < step < 100000 for step in steps)


def alive(session: int) -> list[str]:
    """The processes of a session."""
    found = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in os.listdir("/proc") if pid.isdigit())
    return [fields for fields in found if int(fields[3]) == session and fields[0] != "Z"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_jobs_that_are_still_loading_when_the_sweep_is_stopped(tmp_path, signum):
    """They never train, and no process is left; the table says running of none."""
    words = ["train.py", "-m", *WORDS, "steps=100000", *place(tmp_path), "name=e", "launcher=submitit_local", "seed=1,2"]
    process = begun(words, lambda: len(list((tmp_path / "runs/.submitit").glob("*/*_log.out"))) == 2)
    process.send_signal(signum)
    assert process.wait(60) == (-signum if signum == signal.SIGKILL else 128 + signum)
    until = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < until:
        assert signum == signal.SIGKILL  # else the sweep has waited for them
        time.sleep(0.2)
    assert not alive(process.pid) and runs(tmp_path) == set()
    assert set(states(tmp_path, "e") if (tmp_path / "runs/e.csv").exists() else []) <= {"stopped"}


@pytest.mark.slow
def test_submitit(tmp_path):
    words = ["train.py", "-m", *WORDS, *place(tmp_path), "name=l", "launcher=submitit_local"]
    result = command(*words, "network.channels=8,7")
    assert result.returncode == 1 and states(tmp_path, "l") == ["done", "failed"]
    succeeded(command(*words, "network.channels=8"))
    assert states(tmp_path, "l") == ["skipped"]


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(tmp_path):
    """The trial that was running is tried again, in its folder; the number of trials is that of all calls together."""
    words = ["train.py", "-m", *WORDS, *LONG, *METRIC, *place(tmp_path), "name=o", "sweeper=optuna"]
    space = ["optimizer.lr=tag(log,interval(1e-5,1e-2))", "network.channels=8,7,12"]
    process = begun([*words, *space, "sweeper.n_trials=4"], lambda: len(list((tmp_path / "runs").glob("o-*/checkpoints/last.ckpt"))) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    said = command(*words, *space, "sweeper.n_trials=4")
    assert "goes on in" in said.stdout and "best of" in said.stdout, said.stderr
    found = rows(tmp_path, "o")
    assert len(found) == 4 and all(row["state"] == ("failed" if row["network.channels"] == "7" else "done") for row in found)
    assert said.returncode == (1 if "failed" in states(tmp_path, "o") else 0)
    best = min(float(row["sliced-wasserstein@16"]) for row in found if row["state"] == "done")
    assert f"{best:.4g}" in said.stdout.split("best of")[1].splitlines()[0]
    again = command(*words, *space, "sweeper.n_trials=4")
    assert len(rows(tmp_path, "o")) == 4 and "Launching" not in again.stdout
    for others in (["optimizer.lr=interval(1e-5,1e-2)"], [*space, "metric.n=12"], [*space, "steps=20"], [*space, "metric.groups=4"]):
        other = command(*words, *others)
        assert other.returncode == 1 and "name=o is a search of other words" in other.stderr, other.stderr
    turned = command(*words[:2], "sweeper.n_trials=4", "sweeper=optuna", *METRIC, *space, *words[2:], "launcher=joblib", "logger=csv")
    assert "is a search of" not in turned.stderr and "Launching" not in turned.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_two_devices_in_each_job(tmp_path, launcher):
    """One folder for each job and no other."""
    words = ["train.py", "-m", *WORDS, *METRIC, *place(tmp_path), "name=d", f"launcher={launcher}", "trainer.devices=2", "seed=1,2"]
    succeeded(command(*words, env={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}))
    assert states(tmp_path, "d") == ["done", "done"] and runs(tmp_path) == {"d-0", "d-1"}
