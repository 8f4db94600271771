"""A training that a signal ends has lost nothing: resumed, it is the run that was never stopped. The signals are real ones."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, SMALL

from diffusion.dashboard.read import read_run
from diffusion.denoiser import Denoiser
from diffusion.support.signals import SIGNALS, heed_the_parent_alone
from diffusion.training.callbacks.checkpoints import Checkpoints
from diffusion.training.callbacks.interruption import Interrupted, Interruption
from diffusion.training.launch import follow
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

WORDS = ["accumulate=2", "steps=4", "log_every=2", "eval_every=2", "checkpoint_every=1000", "grid.steps=3", "metric=none"]


def content(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def recorded(folder):
    """The step and the names of each line of numbers."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], *sorted(line.keys() - {"step", "time"})) for line in lines]


def stopped(monkeypatch, config, folder, owner, method, call, signum):
    """Train until the `call`-th call of a method, in which the process sends itself a signal; (exit code, calls that were begun)."""
    real, calls = getattr(owner, method), []

    def signalled(self, *args, **kwargs):
        if owner is DiffusionModule or not self.training:
            calls.append(self)
            if len(calls) == call:
                os.kill(os.getpid(), signum)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, signalled)
        with pytest.raises(SystemExit) as left:
            train(config, folder)
    return left.value.code, len(calls)


@pytest.fixture
def whole(tiny, tmp_path, monkeypatch):
    """A run that was never stopped: its folder, and the calls of the denoiser in one evaluation of it."""
    real, calls = Denoiser.forward, []

    def counted(self, *args, **kwargs):
        calls.extend([] if self.training else [self])
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "forward", counted)
        train(tiny(*WORDS), tmp_path / "whole")
    return tmp_path / "whole", len(calls) // 2


def assert_the_same(whole, parts):
    a, b = content(whole), content(parts)
    assert a["global_step"] == b["global_step"] and a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    assert recorded(whole) == recorded(parts)
    assert sorted(f.name for f in (whole / "samples").iterdir()) == sorted(f.name for f in (parts / "samples").iterdir())


def test_between_two_batches_of_one_step(tiny, tmp_path, monkeypatch, whole, caplog):
    """The step is finished first: neither gradients nor the batch they came from are lost."""
    config, parts = tiny(*WORDS), tmp_path / "parts"
    with caplog.at_level("INFO"):
        assert stopped(monkeypatch, config, parts, DiffusionModule, "training_step", 5, signal.SIGUSR1) == (128 + signal.SIGUSR1, 6)
    assert f"go on with: python train.py resume={parts}" in caplog.text
    assert content(parts)["global_step"] == 3
    later = time.time
    with monkeypatch.context() as patched:  # eleven days
        patched.setattr(time, "time", lambda: later() + 1e6)
        train(config | {"resume": str(parts)}, parts)
    assert_the_same(whole[0], parts)
    seconds = read_run(parts).seconds
    assert 0 < seconds[0] < seconds[-1] < 1e4  # of training, and none of the pause


def test_a_rank_whose_starter_ended_while_it_was_loading_leaves(monkeypatch):
    left = threading.Event()
    monkeypatch.setattr("diffusion.training.launch.os._exit", lambda code: left.set())
    follow(-1)
    assert left.wait(10)


@pytest.mark.parametrize("evaluation", [0, 1], ids=["of step 2", "of the last step"])
def test_in_an_evaluation(tiny, tmp_path, monkeypatch, whole, evaluation):
    """It is left at once; the resumed run makes the one that was left, and no other a second time."""
    config, parts, calls = tiny(*WORDS), tmp_path / "parts", whole[1]  # 3 calls: a grid of 3 steps
    at = calls * evaluation + 2
    assert stopped(monkeypatch, config, parts, Denoiser, "forward", at, signal.SIGTERM) == (143, at)
    assert content(parts)["global_step"] == 2 * evaluation + 2
    train(config | {"resume": str(parts)}, parts)
    assert_the_same(whole[0], parts)
    assert content(parts, "previous.ckpt")["global_step"] == 2  # never of the same step as the last
    before = {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()}
    train(config | {"resume": str(parts)}, parts)
    assert {file: file.read_bytes() for file in parts.rglob("*") if file.is_file()} == before  # nothing is owed any more


def test_a_job_s_processes_are_all_told(tmp_path):
    """As a cluster does it: those that fetch data too, which serve the training until it has saved its checkpoint."""
    kept = [word for word in SMALL if word.partition("=")[0] not in ("steps", "checkpoint_every", "eval_every")]
    words = ["steps=1000000", "checkpoint_every=1000000", "eval_every=1000000", "data.num_workers=2", "data.device_resident=false"]
    line = [sys.executable, "train.py", *kept, *words, "name=run", f"paths.runs={tmp_path}", f"paths.cache={tmp_path}/c"]
    run = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGTERM)
        output = run.communicate(timeout=120)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 143 and "go on with" in output and "Traceback" not in output, output
    assert content(tmp_path / "run")["global_step"] > 0


def fetching(ready):
    heed_the_parent_alone()
    ready.set()
    time.sleep(600)


def test_a_worker_heeds_its_parent_alone():
    ready = multiprocessing.Event()
    worker = multiprocessing.get_context("fork").Process(target=fetching, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    for signum in SIGNALS:
        subprocess.run(["kill", f"-{int(signum)}", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert worker.is_alive()
    worker.terminate()  # as the DataLoader does, and Python at its end
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize(("saved", "left"), [(3, Interrupted), (2, RuntimeError)])
def test_a_message_that_fails_is_a_rank_s_leaving_only_where_nothing_is_lost(tmp_path, saved, left):
    interruption, checkpoints = Interruption({}), Checkpoints(1)
    interruption.heard, interruption.agreement.group, checkpoints.saved = signal.SIGTERM, object(), (saved, 0.0)
    strategy = SimpleNamespace(launcher=None)
    trainer = SimpleNamespace(strategy=strategy, global_step=3, callbacks=[checkpoints], is_global_zero=True, default_root_dir=tmp_path)
    with pytest.raises(left), interruption.heeded(trainer):
        raise RuntimeError("connection closed by peer")


def test_handlers_are_as_before_and_an_ignored_signal_stays_ignored(monkeypatch):
    """Under nohup a hang-up is ignored; SIGUSR2 is for whoever uses it."""
    before, hangup = {signum: signal.getsignal(signum) for signum in SIGNALS}, signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption = Interruption({})
    try:
        interruption.listen()
        for signum in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert interruption.heard == signal.SIGTERM and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.SIGUSR2 not in SIGNALS
    finally:
        interruption.forget()
        signal.signal(signal.SIGHUP, hangup)
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before
