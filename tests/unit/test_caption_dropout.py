"""Dropped captions in training: how many, which, and to what."""

from types import SimpleNamespace

import torch

from diffusion.conditions import Text, Words
from diffusion.training.module import DiffusionModule
from diffusion.training.share import Share


def dropped(text, cond, p_uncond, step=0):
    """What the training makes of a batch's conditions in this step."""
    share = Share.of(len(cond), SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1), 0)
    share.begin(0, step)
    module = SimpleNamespace(conditions=text, p_uncond=p_uncond)
    found = DiffusionModule.drop(module, cond, share)
    share.end(0, step)
    return found


def test_a_share_of_the_captions_becomes_the_empty_text():
    """Whole captions, 20 % of 20,000 within 4 deviations; others in the next step; the others stay as they are."""
    text = Text(Words(vocabulary="a b c"))
    cond = text.parse(["a b c"]).expand(20_000, -1)
    found = dropped(text, cond, 0.2)
    empty, whole = ((found == row).all(1) for row in (text.nothing, cond[0]))
    assert (empty ^ whole).all() and abs(empty.double().mean() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    again = dropped(text, cond, 0.2, step=1)
    assert 0.5 < ((found == again).all(1)).double().mean() < 0.9  # 0.68
    assert torch.equal(dropped(text, cond, 0.0), cond) and torch.equal(dropped(text, cond, 1.0), text.null(cond))
