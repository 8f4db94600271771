"""A run's folder that somebody else wrote runs nothing, whoever reads it; and one of the user's own classes is read once that is said."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from commands import command, succeeded
from composing import composition, typed
from inside import measured, sampled, trained

from diffusion.checkpoint import MODEL, load
from diffusion.config import told
from diffusion.support.errors import UserError

pytestmark = pytest.mark.xdist_group("foreign")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run", "steps=1", "eval_every=9", "checkpoint_every=1", "metric=none")


@pytest.fixture
def foreign(run, tmp_path):
    """`foreign(group)`: a copy of the run in which this group would run a command, and the file that it would make."""

    def copied(group):
        folder, marker = shutil.copytree(run, tmp_path / "foreign"), tmp_path / "marker"
        for name in ("config.yaml", "source.yaml"):
            config = yaml.safe_load((folder / name).read_text())
            config[group] = {**(config[group] or {}), "inner": {"_target_": "os.system", "command": f"touch {marker}"}}
            (folder / name).write_text(yaml.safe_dump(config))
        return folder, marker

    return copied


@pytest.mark.parametrize("group", sorted({*MODEL, "dataset", "metric"}))
def test_nothing_of_it_runs(foreign, run, tmp_path, group):
    folder, marker = foreign(group)
    reads = [lambda: measured(folder, tmp_path / "out.jsonl", "metric=fd_digits", "metric.n=2")] if group != "metric" else []
    if group in MODEL:
        guided = ["guidance=[autoguidance]", f"guidance.ckpt={folder}"]
        made = tmp_path / "made"
        reads += [lambda: load(folder), lambda: sampled(folder, made, "n=1"), lambda: sampled(run, made, "n=1", *guided)]
    else:
        reads += [lambda: measured(folder, tmp_path / "out.jsonl")]
    for read in reads:
        with pytest.raises(UserError, match=r"os\.system"):
            read()
    assert not marker.exists()


def test_nor_is_it_resumed(foreign):
    folder, marker = foreign("callbacks")
    result = command("train.py", f"resume={folder}", "steps=2")
    assert result.returncode == 1 and "os.system" in result.stderr and "Traceback" not in result.stderr
    assert not marker.exists()


def test_trust_is_said_of_a_package(run, tmp_path, monkeypatch):
    """In sample.py and in Python; without the word it is refused, and the remedy named."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/somebodys.py").write_text("from diffusion.networks import UNet\n\n\nclass Mine(UNet):\n    pass\n")
    folder = shutil.copytree(run, tmp_path / "own")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("diffusion.networks.UNet", "somebodys.Mine"))
    outside = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])}
    refused = command("sample.py", f"ckpt={folder}", "n=1", env=outside)
    assert refused.returncode == 1 and "trust=somebodys" in refused.stderr
    succeeded(command("sample.py", f"ckpt={folder}", "n=1", "trust=somebodys", f"out={tmp_path / 'out'}", env=outside))
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)  # another test's
    with pytest.raises(UserError, match="trust=somebodys"):
        load(folder)
    assert type(load(folder, trust=["somebodys"]).denoiser.network).__name__ == "Mine"


@pytest.fixture
def misplaced(run, tmp_path):
    """`misplaced(group, name, value)`: a copy of the run whose files say this of a group."""

    def copied(group, name, value):
        folder = shutil.copytree(run, tmp_path / "misplaced")
        for file in ("config.yaml", "source.yaml"):
            config = yaml.safe_load((folder / file).read_text())
            config[group] = {**(config[group] or {}), name: value}
            (folder / file).write_text(yaml.safe_dump(config))
        return folder

    return copied


def test_nothing_is_written_where_a_file_says(misplaced, tmp_path):
    """Neither the cache of the data, nor by an object that has no business in a stage of guidance; unless the command says so as well."""
    elsewhere = tmp_path / "elsewhere"
    folder, words = misplaced("dataset", "cache", str(elsewhere)), ("metric=sliced_wasserstein", "metric.n=20")
    with pytest.raises(UserError, match=r"elsewhere.* written, where this command was not told to write: .*paths\.cache=.*elsewhere"):
        measured(folder, tmp_path / "out.jsonl", *words)
    assert not elsewhere.exists()
    measured(folder, tmp_path / "out.jsonl", *words, f"paths.cache={elsewhere}")
    assert elsewhere.exists()
    measured(folder, tmp_path / "again.jsonl", *words)  # what is there is read
    shutil.rmtree(elsewhere), shutil.rmtree(folder)
    extractor = {"_target_": "diffusion.metrics.DigitsClassifier", "cache": str(elsewhere)}
    folder = misplaced("guidance", "clip", {"_target_": "diffusion.guidance.Clip", "low": extractor})
    with pytest.raises(UserError, match="not told to write"):
        sampled(folder, tmp_path / "out", "n=1")
    assert not elsewhere.exists()


def test_a_resumed_run_logs_in_its_own_folder(misplaced, tmp_path):
    """A real command, which has to know what it was told."""
    elsewhere = tmp_path / "elsewhere"
    logger = {"_target_": "diffusion.training.loggers.CSV", "save_dir": str(elsewhere), "name": "csv", "version": ""}
    folder = misplaced("logger", "csv", logger)
    refused = command("train.py", f"resume={folder}", "steps=2", "trainer.max_steps=2", f"paths.cache={folder.parent / 'cache'}")
    assert refused.returncode == 1 and "not told to write" in refused.stderr and "Traceback" not in refused.stderr
    assert not elsewhere.exists()


def test_the_environment_is_not_read(misplaced, tmp_path, monkeypatch):
    """Not by a value that goes into the command's own configuration either."""
    monkeypatch.setenv("SECRET", "64-true")
    folder = misplaced("dataset", "flip", False)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("precision: 32-true", "precision: ${oc.env:SECRET}"))
    for read in (
        lambda: sampled(folder, tmp_path / "out", "n=1"),
        lambda: measured(folder, tmp_path / "x", "metric=nll_vlb"),
        lambda: load(folder),
    ):
        with pytest.raises(UserError, match=r"precision asks for '\$\{oc\.env:SECRET\}'"):
            read()


def test_a_long_word_is_no_place():
    cfg = composition("ckpt=x", f"out={'x' * 300}", name="sample")
    assert told(cfg, typed("ckpt=x", "out=x"))[:2] == [Path("x"), Path("x" * 300)]
