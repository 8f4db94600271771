"""A checkpoint that has changed since it was written is noticed, whichever bit it was, and the one before it is used."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from inside import measured, sampled, trained
from test_resume import assert_same, content

from diffusion.average import write_average
from diffusion.checkpoint import checked_checkpoint, load, read, read_checkpoint, read_config, write_checkpoint
from diffusion.support.errors import UserError
from diffusion.training.run import train

WORDS = ["steps=6", "checkpoint_every=4", "eval_every=100", "metric=none", "ema=posthoc", "callbacks.snapshots.every=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "run", *WORDS)


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def flipped(file, bit):
    """The file with a bit of it, counted from its start, turned over."""
    raw = bytearray(file.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)


def test_every_bit_counts_and_every_length(tmp_path):
    """Bits of a small checkpoint from its first to its last: tensors, padding, the archive's own directory, and the hash itself."""
    file = tmp_path / "last.ckpt"
    write_checkpoint({"weight": torch.randn(3), "global_step": 1}, file)
    raw = file.read_bytes()
    for bit in range(0, len(raw) * 8, 29):  # 29 and 8 have no common factor: each place in a byte
        flipped(file, bit)
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(file)
        file.write_bytes(raw)
    for length in [*range(0, len(raw), 197), len(raw) - 54, len(raw) - 32, len(raw) - 1]:
        file.write_bytes(raw[:length])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(file)


def test_others_read_it_and_we_read_theirs(tmp_path):
    """The hash is a zip file's comment, which readers skip; a checkpoint without one, of an older version, is taken as it is."""
    ours, theirs = tmp_path / "ours.ckpt", tmp_path / "theirs.ckpt"
    saved = {"weight": torch.randn(1000), "global_step": 1}
    write_checkpoint(saved, ours)
    torch.save(saved, theirs)
    for mapped in (False, True):
        assert_same(torch.load(ours, weights_only=True, mmap=mapped), saved)
    assert zipfile.ZipFile(ours).testzip() is None
    assert_same(read_checkpoint(theirs), saved)


def test_the_one_before_is_kept(run):
    folder = run / "checkpoints"
    assert sorted(file.name for file in folder.glob("*")) == ["ema", "last.ckpt", "previous.ckpt"]
    assert [read_checkpoint(folder / f"{name}.ckpt")["global_step"] for name in ("previous", "last")] == [4, 6]


def test_a_write_that_fails_leaves_both(run, monkeypatch):
    before = {file: file.read_bytes() for file in (run / "checkpoints").glob("*.ckpt")}
    monkeypatch.setattr(torch, "save", lambda content, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint({}, run / "checkpoints/last.ckpt", keep=run / "checkpoints/previous.ckpt")
    assert {file: file.read_bytes() for file in (run / "checkpoints").glob("*.ckpt")} == before
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("part", range(12))
def test_a_damaged_one_is_replaced_with_a_warning(run, part, caplog):
    last = run / "checkpoints/last.ckpt"
    flipped(last, last.stat().st_size * 8 * part // 12 + part)
    file, found = read(run)
    assert (file.name, found["global_step"]) == ("previous.ckpt", 4)
    assert "damaged" in caplog.text and f"{file}, of step 4" in caplog.text


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_sampling_and_measuring_go_on_with_the_one_before(run, tmp_path, caplog, length):
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:length])
    assert load(run).step == 4 and "damaged" in caplog.text
    sampled(run, tmp_path / "images", "n=2")
    assert measured(run, tmp_path / "cells.jsonl", "metric=[memorization]", "metric.n=8", "metric.groups=0")["passport"]["step"] == 4
    assert write_average(run, 0.1).name == "ema=0.1.ckpt"


def test_one_that_was_named_is_refused(run):
    last = run / "checkpoints/last.ckpt"
    flipped(last, 4000)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.* The one before it is .*previous\.ckpt"):
        load(last)
    flipped(run / "checkpoints/previous.ckpt", 4000)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*previous\.ckpt is damaged"):
        load(run)


def test_one_that_is_not_there_is_replaced_with_a_warning(run, caplog):
    (run / "checkpoints/last.ckpt").unlink()
    assert load(run).step == 4 and "last.ckpt is not there" in caplog.text


def test_a_run_goes_on_from_the_one_before_and_ends_the_same(whole, run, tiny):
    flipped(run / "checkpoints/last.ckpt", 4000)
    config = tiny(*WORDS, "steps=6")
    train(config | {"resume": str(run)}, run)
    assert read_checkpoint(run / "checkpoints/previous.ckpt")["global_step"] == 4  # not the damaged one
    for part in ("state_dict", "ema", "optimizer_states"):
        assert_same(content(run)[part], content(whole)[part], part)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6


WRONG = {
    **{"state_dict": [[1], None], "ema": [None, [], {}, {"shadow": [1]}], "global_step": [None, "x", -1, 1.5, True, 2**53, 10**12 + 0.5]},
    "average": ["x", {"decay": [1, 2]}, {"decay": 2.0}, {"std": "x"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_what_a_checkpoint_does_not_say_is_a_sentence(key, value):
    right = {"state_dict": {}, "global_step": 3, "ema": {"shadow": {}, "average": {"decay": 0.9}}}
    assert checked_checkpoint(right, Path("x.ckpt")) == right
    wrong = right | ({"ema": {"shadow": {}, "average": value}} if key == "average" else {key: value})
    for said in (wrong, {name: of for name, of in right.items() if name != key} if key != "average" else [1]):
        with pytest.raises(UserError, match=r"x\.ckpt does not say what its"):
            checked_checkpoint(said, Path("x.ckpt"))


@pytest.mark.parametrize(
    ("key", "value"), [("paths", 5), ("p_uncond", "x"), ("p_uncond", [1]), ("p_uncond", 2), ("times", "x"), ("times", {})]
)
def test_what_a_configuration_does_not_say_is_a_sentence(run, key, value):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {key: value}))
    with pytest.raises(UserError, match=f"does not say what {key} is"):
        read_config(run)
