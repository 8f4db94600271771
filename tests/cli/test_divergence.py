"""A run whose loss is no longer finite: noticed within five steps, however seldom it logs, with its numbers and a sentence that fits."""

import re

import pytest
import torch
from inside import lines

from diffusion.checkpoint import read_checkpoint
from diffusion.support.errors import UserError
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

SELDOM = ["log_every=1000", "eval_every=1000", "metric=none", "steps=1000"]


def stopped(config, folder):
    """The sentence with which the run ends, and the steps of it: the bad one, and that after which it stopped."""
    with pytest.raises(UserError) as error:
        train(config, folder)
    text = str(error.value)
    return text, *(int(number) for number in re.search(r"stopped after step (\d+): the loss at step (\d+)", text).groups())


def poisoned(monkeypatch, before):
    """A weight is not a number from after this step on (0: from the start)."""
    real = DiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == before:
            next(self.denoiser.parameters()).data.fill_(torch.nan)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)


def test_it_is_noticed_soon_and_the_numbers_are_kept(tiny, tmp_path, monkeypatch):
    poisoned(monkeypatch, before=7)
    text, at, bad = stopped(tiny(*SELDOM, "checkpoint_every=3"), tmp_path)
    assert bad == 8 and bad <= at <= bad + 4
    assert f"{tmp_path}/checkpoints/last.ckpt is from before that" in text and "optimizer.lr" in text and "precision" not in text
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 6 and all(value.isfinite().all() for value in last["state_dict"].values())
    *_, final = lines(tmp_path / "metrics.jsonl")
    assert final["step"] == 7 and final["images"] == 7 * 8 and 0 < final["loss"] < 10  # of steps 2 to 7


def test_the_first_loss_is_not_the_learning_rate_s(tiny, tmp_path, monkeypatch):
    poisoned(monkeypatch, before=0)
    text, at, bad = stopped(tiny(*SELDOM), tmp_path)
    assert bad == 1 and at <= 5 and "optimizer.lr" not in text and "warmup" not in text
    assert "nothing had been saved" in text and "last.ckpt" not in text


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_learning_rate_that_is_too_large_is_named(tiny, tmp_path, precision):
    text, at, bad = stopped(tiny(*SELDOM, "optimizer.lr=1e30", "warmup=0", f"precision={precision}", "grad_clip=null"), tmp_path)
    assert 1 < bad <= at <= bad + 4 and "optimizer.lr" in text and ("precision=32-true" in text) == (precision != "32-true")


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch):
    """Of the last step, whose loss was finite."""
    real = DiffusionModule.optimizer_step

    def optimizer_step(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if self.global_step == 5:  # this is the sixth
            next(self.denoiser.parameters()).data.fill_(torch.inf)

    monkeypatch.setattr(DiffusionModule, "optimizer_step", optimizer_step)
    with pytest.raises(UserError, match=r"after step 6: a weight is not finite; .*last\.ckpt is from before that"):
        train(tiny("log_every=1000", "eval_every=1000", "metric=none", "steps=6", "checkpoint_every=4"), tmp_path)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert 6 in [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
