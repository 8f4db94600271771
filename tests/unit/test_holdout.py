"""dataset.holdout: items that training never sees, and the loss on them, the same items, times and noise at each reading."""

import json

import pytest
import torch
from composing import TINY, composed

from diffusion.checkpoint import load
from diffusion.data import Stream, held_out
from diffusion.noise import SeededNoise
from diffusion.objectives import Hybrid
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.times import evenly
from diffusion.training.run import train


def test_the_items_are_shared_out():
    seen, held = held_out(50, 0.2)
    assert len(held) == 10 and sorted([*seen.tolist(), *held.tolist()]) == list(range(50))
    assert held.tolist() != sorted(held.tolist()) and held.min() < 25 <= held.max()  # from all over a set that may be sorted by class
    assert len(held_out(50, 0)[1]) == 0


@pytest.mark.parametrize("share", [0.001, 0.9999, 1.0])
def test_a_share_of_none_or_all_is_a_sentence(share):
    with pytest.raises(UserError, match="leaves some of both"):
        held_out(50, share)


def test_training_serves_the_others_alone_and_each_once_an_epoch():
    images = torch.arange(50)
    rows, _ = held_out(50, 0.2)
    stream = Stream(images, images, batch_size=8, seed=3, rows=rows)
    epochs = [torch.cat([stream.batch(e * 5 + i).images for i in range(5)]).tolist() for e in range(2)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs) and epochs[0] != epochs[1]
    two = [Stream(images, images, 8, 3, rank, 2, rows=rows).batch(4).images for rank in range(2)]
    assert torch.cat(two).tolist() == epochs[0][-8:]


def trained(folder, *words):
    """The lines of a tiny run's metrics.jsonl."""
    config = composed(
        *(word for word in TINY if "samples" not in word),
        "metric=none",
        "steps=4",
        "eval_every=2",
        "lr_schedule=constant",
        f"paths.cache={folder.parent / 'cache'}",
        *words,
    )
    train(config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_of_held_out_items_by_hand(tmp_path):
    """Every term, all and by quarter of t, of the averaged weights; each time the same items, so it is the weights that differ."""
    lines = [line for line in trained(tmp_path / "run", "dataset.holdout=0.2") if "heldout" in line]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["heldout"] != lines[1]["heldout"]
    model = load(tmp_path / "run")
    data = build(model.config["dataset"], "dataset").load()
    _, held = held_out(len(data), 0.2)
    t, noise = evenly(len(held), model.denoiser.schedule), SeededNoise(range(len(held)), "cpu")
    x0 = model.codec.encode(torch.from_numpy(data.images[held.numpy()]))
    with torch.no_grad():
        losses = Hybrid()(model.denoiser, x0, t, noise(x0), torch.from_numpy(data.labels[held.numpy()]))
    found = {key: value for key, value in lines[-1].items() if key.startswith("heldout")}
    assert found["heldout"] == pytest.approx(losses["loss"].mean().item(), rel=1e-5)
    for name in losses.keys() - {"loss"}:
        assert found[f"heldout/{name}"] == pytest.approx(losses[name].mean().item(), rel=1e-5)
    for q in range(4):
        there = (t > q / 4) & (t <= (q + 1) / 4)
        assert found[f"heldout/t{q + 1}of4"] == pytest.approx(losses["loss"][there].mean().item(), rel=1e-5)
    assert len(found) == 5 * len(losses)


def test_neither_training_nor_batches_see_it(tmp_path):
    """Measuring changes nothing in training, and the number of items at a time nothing in what is measured."""
    a = trained(tmp_path / "a", "dataset.holdout=0.2", "callbacks.heldout.every=1")
    b = trained(tmp_path / "b", "dataset.holdout=0.2", "callbacks.heldout.every=4")
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (a, b)]
    assert losses[0] == losses[1]
    assert [line["heldout"] for line in a if "heldout" in line][-1] == [line["heldout"] for line in b if "heldout" in line][-1]
    assert not any("heldout" in line for line in trained(tmp_path / "c"))


def test_an_autoencoder_has_no_such_loss(tmp_path):
    with pytest.raises(UserError, match=r"no callbacks\.heldout"):
        trained(tmp_path / "run", "task=autoencoder", "dataset.holdout=0.5", "network.channels=16")


def test_a_classifier_has_its_accuracy(tmp_path):
    lines = trained(tmp_path / "run", "task=classifier", "dataset.holdout=0.5")
    assert {"heldout", "heldout/accuracy"} <= lines[-1].keys() | lines[-2].keys()
