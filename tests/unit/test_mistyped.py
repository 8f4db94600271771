"""A word that does not compose is answered with what was probably meant."""

import re
import sys
from pathlib import Path

import pytest
from composing import composed, composition
from hydra.errors import HydraException

from diffusion.config import configuration
from diffusion.mistyped import plainly
from diffusion.support.errors import UserError

CASES = [
    ("train", ["schedule=cosin"], "schedule=cosin is not one of the choices cosine, custom, edm, .*; did you mean schedule=cosine;"),
    ("train", ["guidance=[cgf]"], "guidance=cgf is not one of the choices .*; did you mean guidance=cfg;"),
    ("train", ["schedule=true"], "schedule=true is not one of the choices cosine, "),
    ("evaluate", ["sampler=null"], "sampler=null is not one of the choices custom, "),
    ("train", ["training=0.5"], "training=0.5: Cannot assign float"),
    ("train", ["schedul=cosine"], "schedul is not a key of this command; did you mean schedule"),
    ("train", ["stepz=3"], "stepz is not a key of this command; did you mean steps;"),
    ("train", ["+stepz=3"], r"stepz is not a key of this command; its keys are .*; did you mean steps$"),
    ("train", ["lr=0.1"], "lr is not a key of this command; did you mean optimizer.lr;"),
    ("train", ["optimizer.lrr=1"], r"did you mean optimizer.lr; .* is added by \+optimizer.lrr=VALUE"),
    ("train", ["guidance.scal=2"], "which are cfg, clip, with guidance.cfg.scale, .*; did you mean guidance.scale$"),
    ("train", ["guidance=[autoguidance]", "guidance.scale=2"], "with guidance.autoguidance.weight, guidance.autoguidance.bad.ckpt"),
    ("sample", ["ema=false"], "ema is not a key of this command; did you mean averaged;"),
    ("sample", ["steps=20"], "steps is not a key of this command; did you mean grid.steps;"),
    ("sample", ["network=digits"], "network is not a key of this command;"),
]


@pytest.mark.parametrize(("command", "words", "said"), CASES, ids=lambda value: str(value)[:40])
def test_what_was_meant_is_named(command, words, said, monkeypatch):
    """In one sentence, without Hydra's words for it; the command is the one that was called."""
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
    with pytest.raises((HydraException, UserError, ValueError)) as error:
        composed(*words, name=command)
    sentence = plainly(error.value)
    assert re.search(said, sentence), sentence
    assert "struct" not in sentence and "Schema" not in sentence and "\n" not in sentence


def test_a_group_without_a_choice_is_named(monkeypatch):
    """Hydra takes an empty list, and leaves the group out."""
    monkeypatch.setattr(sys, "argv", ["train.py", "codec=[]"])
    monkeypatch.setattr("diffusion.config.words", lambda: {"codec": "[]"})
    with pytest.raises(UserError, match=r"^codec=\[\] is not one of the choices autoencoder, custom, .*pixels, standardised"):
        configuration(composition("codec=[]"), Path("nowhere"))
