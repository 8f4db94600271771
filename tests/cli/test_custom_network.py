"""A network from outside the package, found on PYTHONPATH, trained and sampled by the commands."""

import os
import sys

import pytest
from commands import SMALL, command, succeeded
from composing import composed

from diffusion.checkpoint import load
from diffusion.support.build import build

TOLD = {"in_channels": 1, "out_channels": 2, "image_size": 8, "num_classes": 4}
MODULE = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, in_channels, out_channels, image_size, num_classes, width=8):
        super().__init__()
        self.hidden = torch.nn.Conv2d(in_channels + 2, width, 3, padding=1)
        self.out = torch.nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x, t, cond):
        b, _, h, w = x.shape
        known = torch.stack([t / 1000, torch.zeros_like(t) if cond is None else cond.float()], dim=1)
        x = torch.cat([x, known[:, :, None, None].expand(b, 2, h, w)], dim=1)
        return self.out(torch.relu(self.hidden(x)))
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with the module, and this process finding it too."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)  # another test's
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")])}


def test_a_network_from_outside_trains_and_samples(outside, tmp_path):
    words = [word for word in SMALL if not word.startswith("network.")]
    own = ["network=custom", "network._target_=somebodys.Mine", "+network.width=6"]
    succeeded(command("train.py", *words, *own, f"paths.runs={tmp_path}", "name=run", "logger=none", env=outside))
    denoiser = load(tmp_path / "run", trust=["somebodys"]).denoiser
    assert type(denoiser.network).__module__ == "somebodys"
    assert denoiser.network.hidden.weight.shape == (6, 3, 3, 3)
    assert len(denoiser.network.out.weight) == 2  # a learned variance too
    assert list((tmp_path / "run/samples").glob("*.png"))


@pytest.mark.parametrize(
    "own, message",
    [
        (["network._target_=somebodys.Mine", "+network.depth=6"], "network.depth is not a setting of Mine"),
        ([], "add network._target_=package.Class"),
        (["network._target_=somebodys.Yours"], "_target_=somebodys.Yours cannot be imported"),
    ],
)
def test_what_is_wrong_with_it_is_said(outside, own, message):
    with pytest.raises(ValueError, match=message):
        build(composed("network=custom", *own)["network"], "network", TOLD)
