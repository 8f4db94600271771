"""init.ckpt=RUN: a training that begins with another's weights, where they fit, from step 0 with a fresh optimizer."""

import logging
import shutil

import pytest
import torch
import yaml
from composing import composed
from inside import trained

from diffusion.checkpoint import load
from diffusion.support.errors import UserError
from diffusion.training.run import train

STILL = ("steps=1", "optimizer.lr=1e-30", "metric=none", "eval_every=9", "lr_schedule=constant")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "first", "steps=5", "metric=none", "eval_every=9", "ema_decay=0.5")


def weights(run, averaged=True):
    return dict(load(run, averaged).denoiser.named_parameters())


@pytest.mark.parametrize("averaged", [True, False])
def test_all_of_it_begins_as_the_other_run_ended(first, tmp_path, averaged, caplog):
    with caplog.at_level(logging.INFO):
        run = trained(tmp_path / "b", f"init.ckpt={first}", f"init.averaged={str(averaged).lower()}", *STILL)
    before, after = weights(first, averaged), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in after) and before.keys() == after.keys()
    assert not all(torch.equal(before[name], weights(first, not averaged)[name]) for name in before)  # the two differ at all
    assert "(100.0 % of the weights)" in caplog.text and load(run).step == 1 and "is learned anew" not in caplog.text
    said = yaml.safe_load((run / "config.yaml").read_text())["init"]
    assert said["weights"] == load(first, averaged).weights and said["ckpt"] == str(first)


def test_what_does_not_fit_is_listed_and_begins_anew(first, tmp_path, caplog):
    """Another number of classes, another schedule, whose tables are its own."""
    with caplog.at_level(logging.INFO):
        run = trained(tmp_path / "b", f"init.ckpt={first}", "dataset.num_classes=6", "schedule=linear", *STILL)
    before, after = weights(first), weights(run)
    differing = {name for name in after if name not in before or before[name].shape != after[name].shape}
    assert differing and all("class" in name or "label" in name or "cond" in name for name in differing), differing
    assert all(torch.equal(before[name], after[name]) for name in after if name not in differing)
    assert "of another shape" in caplog.text and "there [" in caplog.text
    t = torch.tensor([0.3, 0.9])
    assert not torch.equal(load(run).denoiser.schedule(t)[0], load(first).denoiser.schedule(t)[0])


def test_an_output_that_means_something_else_is_said(first, tmp_path, caplog):
    """All weights fit, and what they make is read otherwise."""
    trained(tmp_path / "b", f"init.ckpt={first}", "parameterization=v", *STILL)
    assert "means Epsilon, and here V: it is learned anew" in caplog.text


def test_items_that_the_other_run_has_seen_are_not_unseen(first, tmp_path, caplog):
    trained(tmp_path / "b", f"init.ckpt={first}", "dataset.holdout=0.2", *STILL)
    assert "was trained on items that are held out now" in caplog.text
    caplog.clear()
    trained(tmp_path / "c", f"init.ckpt={tmp_path / 'b'}", "dataset.holdout=0.2", *STILL)
    assert "held out now" not in caplog.text


def test_a_resumed_run_needs_the_other_no_more(first, tmp_path):
    shutil.copytree(first, tmp_path / "gone")
    words = (f"init.ckpt={tmp_path / 'gone'}", "metric=none", "eval_every=99", "checkpoint_every=2")
    whole = trained(tmp_path / "whole", *words, "steps=4")
    half = trained(tmp_path / "half", *words, "steps=2")
    shutil.rmtree(tmp_path / "gone")
    again = trained(half, *words, "steps=4", f"resume={half}")
    a, b = weights(whole, False), weights(again, False)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_does_not_fit_at_all_is_a_sentence(first, tmp_path):
    with pytest.raises(UserError, match=r"Nothing of init\.ckpt"):
        train(
            composed("dataset=two_moons", f"init.ckpt={first}", "trainer.accelerator=cpu", f"paths.cache={tmp_path}", *STILL),
            tmp_path / "b",
        )
    for word in ("init=RUN", "init.ckpt="):
        with pytest.raises(UserError, match=r"say init\.ckpt=runs/NAME"):
            trained(tmp_path / "d", word, *STILL)
    with pytest.raises(UserError, match="There is no checkpoint"):
        trained(tmp_path / "c", f"init.ckpt={tmp_path / 'nothing'}", *STILL)
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
