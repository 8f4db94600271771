"""A further metric of images that were measured calls no network, and gives the number that it would have given at first."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command, succeeded
from inside import lines, measured

from diffusion.evaluation.cells import ours
from diffusion.generate import Recipe
from diffusion.metrics import DigitsClassifier
from diffusion.part import Part
from diffusion.support.errors import UserError

HOW = ["dataset=digits", "sampler=ddim", "grid.steps=3", "sample_batch_size=16"]
FD = ["metric=fd_digits", "metric.n=40", "metric.groups=0"]
KD = ["metric=kid", "metric.extractor=DigitsClassifier", "metric.n=40", "metric.subset_size=20", "metric.groups=0"]
PR = ["metric=precision_recall", "metric.extractor=DigitsClassifier", "metric.n=40", "metric.groups=0"]


@pytest.fixture
def calls(monkeypatch):
    """How many images were made, and how many the network looked at."""
    counts = {"made": 0, "seen": 0}
    make, look = Recipe.__call__, DigitsClassifier.outputs

    def made(self, seeds, cond=None):
        counts["made"] += len(seeds)
        return make(self, seeds, cond)

    def seen(self, images):
        counts["seen"] += len(images) if len(images) > 1 else 0  # one is looked at to learn the features' number
        return look(self, images)

    monkeypatch.setattr(Recipe, "__call__", made)
    monkeypatch.setattr(DigitsClassifier, "outputs", seen)
    return counts


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluate(tmp_path, cache):
    """The last line of a command that writes to a folder of `tmp_path`; the reference's features are there."""

    def run(folder, *words):
        return measured(Path("exact"), tmp_path / folder / "numbers.jsonl", *HOW, f"paths.cache={cache}", *words)

    for words in (FD, KD, PR):
        run("first", *words, "keep_features=0")
    return run


def fresh(calls):
    found = dict(calls)
    calls.update(made=0, seen=0)
    return found


def number(line):
    return {key: value for key, value in line.items() if "@" in key} | {"passport": line["passport"]}


def test_the_second_metric_calls_no_network(evaluate, calls, tmp_path):
    assert not (tmp_path / "first" / "features").exists()
    alone = {metric: number(line) for metric, line in ((line["metric"], line) for line in lines(tmp_path / "first" / "numbers.jsonl"))}
    fresh(calls)
    for words, expected in ((FD, {"made": 40, "seen": 40}), (KD, {"made": 0, "seen": 0}), (PR, {"made": 0, "seen": 0})):
        line = evaluate("kept", *words)
        assert fresh(calls) == expected
        assert number(line) == alone[line["metric"]]


def test_fewer_images_are_there_and_of_more_the_rest_is_made(evaluate, calls):
    alone = number(evaluate("first", *FD, "metric.n=60"))
    fresh(calls)
    evaluate("kept", *FD)
    fresh(calls)
    evaluate("kept", *KD, "metric.n=30")
    assert fresh(calls) == {"made": 0, "seen": 0}
    assert number(evaluate("kept", *FD, "metric.n=60")) == alone
    assert fresh(calls) == {"made": 28, "seen": 28}  # batches of 16: two are there
    evaluate("kept", *KD, "metric.n=60")
    assert fresh(calls) == {"made": 0, "seen": 0}


@pytest.mark.parametrize("changed", ["seed=5", "grid.steps=4", "sampler=ddpm", "floor=true", "dataset.split=test", "schedule=linear"])
def test_other_images_are_made(evaluate, calls, changed):
    evaluate("first", *KD, changed, "keep_features=0")
    evaluate("kept", *FD)
    fresh(calls)
    evaluate("kept", *KD, changed)
    assert fresh(calls)["seen"] == 40


def test_metrics_of_a_model_and_of_fewer_images_go_beside(evaluate, calls):
    """What is kept serves the one, and the other has what it needs."""
    evaluate("kept", *FD, "metric.n=60")
    fresh(calls)
    evaluate("kept", "metric=[kid,nll_vlb]", *KD[1:], "metric.nll_vlb.images=4", "metric.kid.n=60")
    assert fresh(calls) == {"made": 0, "seen": 0}
    evaluate("kept", "metric=[kid,sliced_wasserstein]", *KD[1:], "metric.kid.n=60", "metric.sliced_wasserstein.n=16", "metric.kid.seed=3")
    assert fresh(calls)["made"] == 16  # the first batch; the others are there


def test_a_book_only_grows(tmp_path):
    """Two commands of one cell, of different numbers of images, at the same time."""
    rows = torch.arange(24.0).reshape(12, 2)
    small, large = Part(tmp_path, 4), Part(tmp_path, 12)
    large.put(torch.arange(4, 12), rows[4:], 1)
    small.put(torch.arange(4), rows[:4], 1)
    assert (Part(tmp_path, 12).made() == 2).all() and torch.equal(Part(tmp_path, 12).images(), rows)


def test_of_classes_of_ones_own_nothing_is_kept():
    """Nobody knows whether their code has changed."""
    assert ours({"sampler": {"_target_": "diffusion.samplers.DDIM"}, "guidance": [{"_target_": "diffusion.guidance.Clip"}], "grid": None})
    assert not ours({"guidance": {"mine": {"_target_": "mine.Guidance"}}}) and not ours([{"_target_": "torch.nn.Linear"}])


def test_a_metric_that_looks_at_the_pictures_has_them_made(evaluate, calls):
    evaluate("kept", *FD)
    fresh(calls)
    evaluate("kept", "metric=[kid,memorization]", "metric.extractor=DigitsClassifier", "metric.n=40", "metric.kid.subset_size=20")
    assert fresh(calls)["made"] == 40


def test_what_is_there_is_of_the_size_that_was_said(evaluate, tmp_path):
    """The longest unused goes first; what is larger by itself is not kept."""
    for seed in range(3):
        evaluate("kept", *FD, f"seed={seed}")
    books = sorted((tmp_path / "kept" / "features").iterdir(), key=lambda book: book.stat().st_mtime)
    size = sum(file.stat().st_size for file in books[0].rglob("*") if file.is_file())
    for age, book in enumerate(reversed(books)):
        os.utime(book, (0, 1000 - age))
    evaluate("kept", *KD, "seed=0", f"keep_features={2.5 * size / 1e9}")
    left = set((tmp_path / "kept" / "features").iterdir())
    assert len(left) == 2 and books[0] in left
    evaluate("small", *FD, "keep_features=1e-6")
    assert not list((tmp_path / "small").glob("features/*"))


def test_a_book_that_was_cut_off_is_made_again(evaluate, calls, tmp_path):
    (alone,) = [number(line) for line in lines(tmp_path / "first" / "numbers.jsonl") if line["metric"].startswith("kd")]
    evaluate("kept", *FD)
    for file in (tmp_path / "kept" / "features").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:500])
    fresh(calls)
    assert number(evaluate("kept", *KD)) == alone
    assert fresh(calls)["made"] == 40


def flipped(layer):
    array = np.load(layer / "images.npy", mmap_mode="r+")
    array.view(np.uint8)[3, 5] ^= 0x40


def other_calls(layer):
    np.full(40, -5, np.int32).tofile(layer / "calls")


def zeros(layer):
    np.save(layer / "images.npy", np.zeros_like(np.load(layer / "images.npy")))


def fewer(layer):
    np.save(layer / "images.npy", np.load(layer / "images.npy")[:5])


def doubles(layer):
    np.save(layer / "images.npy", np.load(layer / "images.npy").astype(np.float64))


def another_kind(layer):
    with open(layer / "images.npy", "wb") as file:
        np.savez(file, arr_0=np.load(layer.parent / "logits" / "images.npy"))


def swapped(layer):
    for file in ("images.npy", "calls", "sums"):
        (layer / file).write_bytes((layer.parent / "logits" / file).read_bytes())


@pytest.mark.parametrize("damage", [flipped, other_calls, zeros, fewer, doubles, another_kind, swapped])
def test_what_was_changed_is_made_again(evaluate, calls, tmp_path, damage):
    """One image of it, or all; the number is the right one, and what was made again is kept."""
    (alone,) = [number(line) for line in lines(tmp_path / "first" / "numbers.jsonl") if line["metric"].startswith("kd")]
    evaluate("kept", *FD)
    (book,) = (tmp_path / "kept" / "features").iterdir()
    damage(book / "features")
    fresh(calls)
    assert number(evaluate("kept", *KD)) == alone
    assert fresh(calls)["made"] == (16 if damage is flipped else 40)  # a batch, or all
    evaluate("kept", *PR)
    assert fresh(calls)["made"] == 0


@pytest.mark.slow
def test_two_processes_read_what_one_kept(tmp_path):
    """By the commands, as a user types them; and one reads what two kept."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    found = {}
    for first, second in (((), torchrun), (torchrun, ())):
        out = tmp_path / f"{len(first)}" / "numbers.jsonl"
        words = [
            "-m",
            "diffusion.evaluate",
            "ckpt=exact",
            *HOW,
            "device=cpu",
            f"out={out}",
            f"paths.cache={tmp_path}",
            f"paths.runs={tmp_path}",
        ]
        succeeded(command(*words, *FD, launcher=first))
        book = next((out.parent / "features").iterdir())
        before = {file: file.read_bytes() for file in book.rglob("*") if file.is_file()}
        succeeded(command(*words, *KD, launcher=second))
        assert {file: file.read_bytes() for file in book.rglob("*") if file.is_file()} == before
        found[len(first)] = [{k: v for k, v in line.items() if "@" in k} for line in lines(out)]
    (one, two) = found.values()
    assert [list(line) for line in one] == [list(line) for line in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6)


@pytest.mark.parametrize("what", ["features", "book", "layer"])
def test_features_are_not_written_through_a_link(evaluate, tmp_path, tmp_path_factory, what):
    """In a run's folder that came from anywhere: nothing is made, changed or removed elsewhere."""
    evaluate("kept", *FD)
    features = tmp_path / "kept" / "features"
    (book,) = features.iterdir()
    linked = {"features": features, "book": book, "layer": next(path for path in book.iterdir() if path.is_dir())}[what]
    theirs = tmp_path_factory.mktemp("other") / "theirs"
    linked.rename(theirs)
    linked.symlink_to(theirs)
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}
    with pytest.raises(UserError, match=r"would have .* written"):
        evaluate("kept", *FD, "metric.n=48")
    assert {path: path.stat().st_mtime_ns for path in theirs.rglob("*")} == before
