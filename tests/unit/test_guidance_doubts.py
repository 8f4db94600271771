"""What does nothing or harms without a word is said in one line where a recipe is made."""

import logging

import pytest
import torch
from torch import nn

from diffusion.codecs import Pixels, Standardised
from diffusion.conditions import Classes
from diffusion.denoiser import Denoiser
from diffusion.grids import Trailing
from diffusion.model import Model
from diffusion.parameterization import V
from diffusion.samplers import DDIM
from diffusion.schedules import Cosine

CFG, PLUS, CLIP, RESCALE = (
    {"_target_": f"diffusion.guidance.{name}"} for name in ("ClassifierFree", "CFGPlusPlus", "DynamicThreshold", "Rescale")
)
PIXELS, FLOATS = Pixels((4, 4, 1)), Standardised((4, 4, 1), torch.zeros(1).tolist(), torch.ones(1).tolist())


@pytest.mark.parametrize(
    ("guidance", "codec", "said"),
    [
        ([CFG | {"scale": 1.0, "negative": 2}], PIXELS, ["guidance.negative=2 does nothing at guidance.scale=1"]),
        ([CFG | {"scale": 2.0, "negative": 2}, CLIP], PIXELS, []),
        ([PLUS | {"scale": 1.0, "negative": 2}], PIXELS, []),
        ([CFG | {"scale": 2.0}], PIXELS, ["guidance.scale=2.0 takes x_0 out of the data's range, and nothing clips it"]),
        ([CFG | {"scale": 2.0}, RESCALE], PIXELS, []),
        ([CFG | {"scale": 2.0}], FLOATS, []),
        ([CFG | {"scale": 1.0}], PIXELS, []),
        ([], PIXELS, []),
    ],
    ids=str,
)
def test_one_line(caplog, guidance, codec, said):
    model = Model(Denoiser(nn.Identity(), Cosine(), V()), codec, Classes(4))
    with caplog.at_level(logging.WARNING):
        model.recipe(DDIM(), Trailing(3), guidance)
    assert [text[: len(begins)] for text, begins in zip(caplog.messages, said, strict=True)] == said
