"""docs/names.md: every scheduler of diffusers and every sampler of k-diffusion stands in it, and the words beside it compose and build."""

import re

import pytest
from composing import ROOT, composed

from diffusion.model import assemble
from diffusion.support.build import build

TEXT = (ROOT / "docs/names.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:4]] for line in TEXT.splitlines() if line.startswith("| `")]
NAMED = set(re.findall(r"`(\w+)`", TEXT))


def test_every_scheduler_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    everything = {name for name in dir(schedulers) if name.endswith("Scheduler")}
    assert everything - NAMED == set()


def test_every_sampler_of_k_diffusion():
    sampling = pytest.importorskip("k_diffusion.sampling")
    assert {name for name in dir(sampling) if name.startswith(("sample_", "get_sigmas_"))} - NAMED == set()


@pytest.mark.parametrize("names, words, remarks", ROWS, ids=[row[0].strip("`") for row in ROWS])
def test_the_words_compose(names, words, remarks):
    known = ["objective=simple", "codec.data_shape=[8,8,1]", "conditions.num_classes=10"]
    config = composed(*known, *(word for word in words.strip("`").split() if not word.startswith("edit=")))
    assemble(config)
    for key in ("sampler", "grid"):
        build(config[key], key)
    for group, _, key, choice in re.findall(r"`(sampler|grid|schedule)(\.(\w+))?(?:=(\w+))?`", remarks):
        assert key in config[group] if key else (ROOT / "conf" / group / f"{choice}.yaml").exists()
