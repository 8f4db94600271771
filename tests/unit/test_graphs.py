"""graphs=true: a network's calls are recorded and played. No GPU is here: torch's own recorder is replaced by one that, as a graph does,
reads from its own tensors and writes to one of its own, over what it wrote before. tests/gpu has the real one."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.generate import Recipe
from diffusion.grids import Trailing
from diffusion.guidance import ClassifierFree
from diffusion.networks import UNet
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDIM, DPMPP2M, Heun
from diffusion.schedules import Cosine
from diffusion.support import graphs
from diffusion.support.graphs import SHAPES, Recorded, recorded

SHAPE = (3, 8, 8)


@pytest.fixture
def plays(monkeypatch):
    """How often each record was played, in the order they were made."""
    counts = []

    def make_graphed_callables(function, sample):
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())  # torch's refuses to
        own, out = [tensor.clone() for tensor in sample], function(*sample).clone()
        number = len(counts)
        counts.append(0)

        def play(*given):
            counts[number] += 1
            for mine, theirs in zip(own, given, strict=True):
                assert mine.shape == theirs.shape and mine.stride() == theirs.stride()
                mine.copy_(theirs)
            out.copy_(function(*own))
            return out

        return play

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return counts


def denoiser():
    torch.manual_seed(0)
    network = UNet(image_size=8, channels=8, multipliers=(1, 2), res_blocks=1, attention=(4,), num_classes=4)
    nn.init.normal_(network.out.weight, std=0.1)  # else it is zero, and all images are one
    return Denoiser(network, Cosine(), Epsilon()).eval()


def made(model, sampler, graphs, precision):
    recipe = Recipe(ClassifierFree(model, 2.0), sampler, Trailing(6), SHAPE, batch_size=2, precision=precision, model=model)
    if graphs:
        object.__setattr__(recipe, "graphs", True)  # which is refused where there is no GPU
    return recipe(range(5), torch.arange(5) % 4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("sampler", [DDIM(), DPMPP2M(), Heun()], ids=lambda sampler: type(sampler).__name__)
def test_images_are_those_of_plain_calls(sampler, precision, plays):
    """Two whole batches of one shape, whose first call is plain, and a last smaller one, whose record is another. DPM++ 2M looks at the
    estimate before, which the next play writes over."""
    model = denoiser()
    played, plain = (made(model, sampler, graphs, precision) for graphs in (True, False))
    assert torch.equal(played.images, plain.images) and played.nfe == plain.nfe >= 6
    assert plays == [2 * plain.nfe - 1, plain.nfe - 1]
    assert "forward" not in vars(model.network)


def test_a_forward_pass_for_gradients_is_plain(plays):
    network, given = denoiser().network, (torch.randn(2, *SHAPE), torch.rand(2), torch.zeros(2, dtype=torch.long))
    with recorded([network]):
        for _ in range(3):
            network(*given).mean().backward()
        assert not plays and network.out.weight.grad is not None
        with torch.no_grad():
            network(*given)
        assert plays == [1]


def test_weights_that_change_in_place_are_read_as_they_are(plays):
    network, given = denoiser().network, (torch.randn(2, *SHAPE), torch.rand(2), torch.zeros(2, dtype=torch.long))
    with torch.no_grad(), recorded([network]):
        before = [network(*given) for _ in range(2)]
        network.out.weight.mul_(2)
        after = network(*given)
    assert torch.equal(*before) and not torch.equal(after, before[0]) and torch.equal(after, network(*given))


def test_so_many_shapes_are_recorded_and_no_more(plays):
    network = Recorded(lambda x, label: x + label[:, None])
    with torch.no_grad():
        for n in range(1, SHAPES + 4):
            x, label = torch.rand(n, 3), torch.rand(n)
            assert all(torch.equal(network(x, label), x + label[:, None]) for _ in range(3))
    assert plays == [2] * SHAPES


def test_an_error_leaves_the_network_as_it_was(plays):
    network = denoiser().network
    with pytest.raises(RuntimeError, match="on the way"), graphs.recorded([network]):
        raise RuntimeError("on the way")
    assert "forward" not in vars(network)


def test_without_a_gpu_it_is_refused():
    with pytest.raises(ValueError, match=r"graphs=true .* the network is not on one: leave it out, or say device=cuda"):
        Recipe(denoiser(), DDIM(), Trailing(6), SHAPE, graphs=True)
