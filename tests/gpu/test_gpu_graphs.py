"""graphs=true on a GPU: of each network and precision the images of plain calls. tests/unit/test_graphs.py has the rest, without a GPU."""

import pytest
import torch

from diffusion import checkpoint

pytestmark = pytest.mark.cuda
NETWORKS = ["digits", "dit_digits", "mnist"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("network", NETWORKS)
def test_images_are_those_of_plain_calls(device, tmp_path, network, precision):
    if not device.real:
        pytest.skip("only a GPU has graphs")
    device.train(tmp_path, "run", "steps=2", "eval_every=100", f"network={network}")
    model = checkpoint.load(tmp_path / "run").to(device.name, precision)
    asked = range(10), model.conditions.ask(torch.arange(10))
    plain, played = (model.recipe(batch_size=4, precision=precision, graphs=graphs)(*asked).images for graphs in (False, True))
    assert (plain.int() - played.int()).abs().max() <= 1 and len(played.unique(dim=0)) == 10
