"""graphs=true on a GPU: of each network and precision the images of plain calls, from records. Where a graph is pretended,
tests/unit/test_graphs.py has the rest."""

import pytest
import torch

from diffusion import checkpoint

pytestmark = pytest.mark.cuda
NETWORKS = ["digits", "dit_digits", "mnist"]


def trained(device, folder, *words):
    """The model of a run of two steps."""
    if not device.real:
        pytest.skip("only a GPU has graphs")
    device.train(folder, "run", "steps=2", "eval_every=100", *words)
    return checkpoint.load(folder / "run")


def records(recipe):
    """How many calls were recorded."""
    return sum(len(recorded.plays) for recorded in recipe.recorded.recorded.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("network", NETWORKS)
def test_images_are_those_of_plain_calls(device, tmp_path, network, precision):
    """Two batches of four, and a smaller one; another call of the same recipe records nothing anew."""
    model = trained(device, tmp_path, f"network={network}").to(device.name, precision)
    asked = range(10), model.conditions.ask(torch.arange(10))
    plain, played = (model.recipe(batch_size=4, precision=precision, graphs=graphs) for graphs in (False, True))
    expected = plain(*asked).images
    for _ in range(2):
        found = played(*asked).images
        assert (expected.int() - found.int()).abs().max() <= 1 and len(found.unique(dim=0)) == 10 and records(played) == 2


def test_another_size_of_a_transformer_is_recorded_too(device, tmp_path):
    model = trained(device, tmp_path, "network=dit_digits").to(device.name)
    plain, played = (model.recipe(size=(16, 8), graphs=graphs) for graphs in (False, True))
    asked = range(4), model.conditions.ask(torch.arange(4))
    assert (plain(*asked).images.int() - played(*asked).images.int()).abs().max() <= 1 and records(played) == 1


def test_its_memory_goes_with_the_recipe(device, tmp_path):
    model = trained(device, tmp_path).to(device.name)
    asked = range(4), model.conditions.ask(torch.arange(4))
    model.recipe()(*asked)  # what is made once
    before = device.held()
    for _ in range(3):
        model.recipe(graphs=True)(*asked)
        assert device.held() == before
