"""A run's folder: its name, who may write into it, and what happens when a command is typed again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, SMALL, command, succeeded
from composing import composition, typed
from inside import lines

import diffusion.config
from diffusion.checkpoint import read_checkpoint
from diffusion.config import configuration, run_dir, run_name
from diffusion.data import Synthetic
from diffusion.evaluate import where
from diffusion.support.errors import UserError
from diffusion.support.files import lock, require_writable
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", "/x", "x/", "x\n", "x" * 300, "ü" * 150])
def test_what_cannot_be_a_name(name):
    """Of a run, of each run of a sweep, and of a file of `diffusion.evaluate`."""
    for named in (lambda: run_name(name), lambda: run_dir("runs", name, None), lambda: run_dir("runs", name, "auto")):
        with pytest.raises(UserError, match="name="):
            named()
    assert run_dir("runs", name, "runs/x") == "runs/x"  # a resumed run has a name


@pytest.mark.parametrize("words", [["name=../x"], ["-m", "name=..,x/y"], ["resume=FILE"]], ids=" ".join)
def test_nothing_is_made_of_a_bad_name(words, tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (file := tmp_path / "a" / "checkpoints" / "last.ckpt").write_text("")
    result = command("train.py", *(word.replace("FILE", str(file)) for word in words), f"paths.runs={tmp_path / 'runs'}")
    said = "cannot be the name of a folder" if words[0] != "resume=FILE" else f"by its folder: resume={tmp_path / 'a'}"
    assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.rglob("*")].count("x") == 0


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "FILE/x", f"{'x' * 300}/y"])
def test_places_that_cannot_be_written(place, tmp_path):
    (tmp_path / "file").write_text("")
    place = place.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"out=.* cannot be written"):
        require_writable(place, "out")
    with pytest.raises(UserError, match=r"out=.* cannot be written"):
        where({"out": f"{place}/cells.jsonl"})
    with pytest.raises(UserError, match="is a folder"):
        where({"out": str(tmp_path)})
    require_writable(tmp_path / "a" / "b", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_two_trainings_in_one_folder(tiny, tmp_path):
    """The second is refused and touches nothing. When the first has been killed, before its first checkpoint, the folder is free, and what
    it had written is not mixed with what comes."""
    config, folder = tiny("eval_every=2", "metric=none"), tmp_path / "run"
    child = os.fork()
    if not child:
        real = DiffusionModule.optimizer_step

        def optimizer_step(self, *args, **kwargs):
            if self.trainer.global_step == 1:
                (folder / "samples").mkdir()
                (folder / "samples" / "old.png").touch()
                time.sleep(600)
            real(self, *args, **kwargs)

        DiffusionModule.optimizer_step = optimizer_step
        try:
            train(config, folder)
        finally:
            os._exit(1)
    while not (folder / "samples").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the first training has ended"
        time.sleep(0.1)
    before = contents(folder)
    with pytest.raises(UserError, match="Another process is training in"):
        train(config, folder)
    assert contents(folder) == before and len(lines(folder / "metrics.jsonl")) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    train(config, folder)
    assert [line["step"] for line in lines(folder / "metrics.jsonl") if "loss" in line] == [1, 2, 4, 6, 8, 10, 12]
    assert not (folder / "samples" / "old.png").exists() and (folder / "samples" / "main-step=00000012.png").exists()


def meanwhile(monkeypatch, config, folder):
    """While the next training in the folder reads its data, another one goes from its beginning to its end."""
    real = Synthetic.load

    def load(self):
        monkeypatch.setattr(Synthetic, "load", real)
        train(config, folder)
        return real(self)

    monkeypatch.setattr(Synthetic, "load", load)


def test_a_run_that_another_process_began_meanwhile(tiny, tmp_path, monkeypatch, caplog):
    """Neither begun anew nor trained a second time: what was asked before the folder was locked is asked again."""
    config, folder = tiny("steps=2", "eval_every=100", "metric=none"), tmp_path / "run"
    meanwhile(monkeypatch, config, folder)
    with pytest.raises(UserError, match="was begun by another process meanwhile; run the command again"):
        train(config, folder)
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 2 and len(lines(folder / "metrics.jsonl")) == 3
    longer = tiny("steps=4", "eval_every=100", "metric=none") | {"resume": str(folder)}
    meanwhile(monkeypatch, longer, folder)
    assert train(longer, folder) == {} and "is at step 4 of 4" in caplog.records[-1].message


def test_a_command_that_is_refused_late_makes_no_folder(tiny, tmp_path):
    with pytest.raises(UserError, match="keep_best=zzz is no number"):
        train(tiny("callbacks.checkpoints.keep_best=zzz"), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists()


def test_a_lock_s_file_that_its_holder_took_away_is_no_lock(tmp_path, monkeypatch):
    """Who has opened it just before would else hold it beside the holder of the next."""
    real = os.open

    def opened(path, *words):
        handle = real(path, *words)
        os.unlink(path)
        return handle

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(BlockingIOError), lock(tmp_path / ".lock", wait=False):
        pass


SAID = ["dataset=synthetic", "dataset.n=64", "optimizer.lr=0.01", "steps=30", "guidance=[cfg]", "seed=3"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """`kept(*words)`: the configuration of a command with resume=auto, typed in the folder of a run that was begun with SAID."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)

    def configured(*words):
        words = ("name=run", *words)
        monkeypatch.setattr(diffusion.config, "words", lambda: typed(*words))
        return configuration(composition(*words), folder)

    monkeypatch.setattr(
        diffusion.config, "words_said", lambda before=None: {"typed": typed("name=run", *SAID), "choices": {"schedule": "cosine"}}
    )
    config, sources = configured(*SAID, "resume=auto")
    assert config["resume"] is None  # nothing is there yet
    for name, text in sources.items():
        (folder / name).write_text(text)
    (folder / "checkpoints" / "last.ckpt").touch()
    return configured


def test_the_same_command_goes_on(kept, tmp_path):
    config, _ = kept(*SAID, "resume=auto")
    assert config["resume"] == str(tmp_path / "run") and config["name"] == "run"
    assert config["dataset"]["n"] == 64 and config["optimizer"]["lr"] == 0.01 and config["guidance"].keys() == {"cfg"}


def test_another_command_changes_what_may_change(kept):
    assert kept("dataset=synthetic", "schedule=cosine", "steps=40", "optimizer.lr=0.02", "resume=auto")[0]["steps"] == 40
    for word in ("schedule=linear", "seed=4", "dataset=digits", "dataset.split=test", "guidance=[cfg,clip]"):
        with pytest.raises(UserError, match="would change what the run"):
            kept(word, "resume=auto")


def test_another_trainer_changes_what_it_is_trained_on(kept):
    """And nothing else: what the words of the first command said of another group stays."""
    before = kept("resume=auto", *SAID)[0]
    config = kept("trainer=ddp", "trainer.accelerator=cpu", "steps=40", "resume=auto")[0]
    told = {"strategy": "ddp", "devices": -1, "accelerator": "cpu", "max_steps": 40}
    assert config["trainer"] == {**before["trainer"], **told} and config["optimizer"] == before["optimizer"]
    for word in ("trainer._target_=os.system", "optimizer=adam"):
        with pytest.raises(UserError, match=f"{word} would change.*keeps every group but trainer"):
            kept(word, "resume=auto")


def test_a_resumed_run_keeps_its_name(kept, tmp_path):
    assert kept(f"resume={tmp_path / 'run'}")[0]["name"] == "run"
    with pytest.raises(UserError, match="name=zzz would change"):
        kept(f"resume={tmp_path / 'run'}", "name=zzz")


def test_auto_wants_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion.config, "words", lambda: {"resume": "auto"})
    cfg = composition("resume=auto", "name=at-${started:}")
    with pytest.raises(UserError, match="say name=NAME too"):
        configuration(cfg, tmp_path)


@pytest.mark.slow
def test_a_preempted_command_typed_again(tmp_path):
    """As a cluster does it: SIGTERM, and the same command once more."""
    kept = [word for word in SMALL if not word.startswith("checkpoint_every")]
    words = ["train.py", *kept, "name=run", "resume=auto", "checkpoint_every=100", f"paths.runs={tmp_path}", f"paths.cache={tmp_path}/c"]
    run = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 143 and f"go on with: python train.py resume={tmp_path / 'run'}" in output
    succeeded(command(*words))
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 6
