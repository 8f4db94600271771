"""graphs=true: a network's calls are recorded and played. No GPU is here: a graph is pretended by a tape of torch's operations, which as a
graph does knows tensors by their places in memory alone: played, it reads what lies there now and writes over what it wrote before, and
what Python said meanwhile it does not hear. tests/gpu has the real ones."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.denoiser import Denoiser
from diffusion.generate import Recipe
from diffusion.grids import Trailing
from diffusion.guidance import Autoguidance, ClassifierFree
from diffusion.model import Model
from diffusion.networks import DiT, UNet
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDIM, DPMPP2M, Heun
from diffusion.schedules import Cosine
from diffusion.support.graphs import SHAPES, Graphs, Recorded, Room

SHAPE = (3, 8, 8)
SMALL = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "res_blocks": 1, "attention": (4,), "num_classes": 4}
NETWORKS = {
    "unet": lambda: UNet(**SMALL),
    "fir": lambda: UNet(**SMALL, fir=True, resample_in_resblock=True, fourier_scale=16, input_pyramid=True, skip_rescale=True),
    "dit": lambda: DiT(3, 3, image_size=8, patch=2, width=16, depth=2, heads=2, num_classes=4),
    "dit of another size": lambda: DiT(3, 3, image_size=16, patch=2, width=16, depth=2, heads=2, num_classes=4),
}


class Tape(TorchDispatchMode):
    """The operations of a context, with the tensors that they were given and gave."""

    def __init__(self):
        super().__init__()
        self.calls, self.plays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        self.plays += 1
        for function, args, kwargs, out in self.calls:
            for place, value in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@pytest.fixture
def tapes(monkeypatch):
    """All that were recorded."""
    made, stream = [], SimpleNamespace(wait_stream=lambda other: None)

    def graph():
        made.append(Tape())
        return made[-1]

    @contextmanager
    def capturing(tape, pool, stream):
        assert not torch.is_grad_enabled() and not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        with tape:
            yield

    pretended = {"CUDAGraph": graph, "graph": capturing, "Stream": lambda: stream, "current_stream": lambda: stream}
    for name, value in (
        pretended | {"stream": lambda stream: nullcontext(), "device": lambda device: nullcontext(), "graph_pool_handle": lambda: None}
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def denoiser(network="unet"):
    torch.manual_seed(0)
    made = Denoiser(NETWORKS[network](), Cosine(), Epsilon()).eval().requires_grad_(False)
    for weight in made.parameters():  # what begins at zero would make all images one
        weight.add_(0.1 * torch.randn_like(weight))
    return made


def recipe(denoise, sampler, graphs=True, precision="32-true", model=None):
    made = Recipe(denoise, sampler, Trailing(6), SHAPE, batch_size=2, precision=precision, model=model)
    object.__setattr__(made, "graphs", graphs)  # which is refused where there is no GPU
    return made


def images(made, n=5):
    return made(range(n), torch.arange(n) % 4)


def plays(tapes):
    return [tape.plays for tape in tapes]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sampler", [DDIM(), DPMPP2M(), Heun()], ids=lambda sampler: type(sampler).__name__)
def test_images_are_those_of_plain_calls(sampler, network, precision, tapes):
    """Two whole batches of one shape, whose first call is plain, and a last smaller one, whose record is another. DPM++ 2M looks at the
    estimate before, which the next play writes over; labels and classes are other ones in each call."""
    model = Model(denoiser(network), Pixels((8, 8, 3)), Classes(4)).to("cpu", precision).denoiser
    played, plain = (images(recipe(ClassifierFree(model, 2.0), sampler, graphs, precision, model)) for graphs in (True, False))
    assert torch.equal(played.images, plain.images) and len(plain.images.unique(dim=0)) == 5
    assert plays(tapes) == [2 * plain.nfe - 1, plain.nfe - 1]
    assert "forward" not in vars(model.network)


def test_what_is_recorded_serves_the_next_call_and_goes_with_the_recipe(tapes):
    made = recipe(denoiser(), DDIM())
    assert torch.equal(images(made, 2).images, images(made, 2).images) and plays(tapes) == [11]
    tapes.clear()
    gc.disable()
    try:
        gone = made.recorded
        alive = weakref.ref(next(iter(next(iter(gone.recorded.values())).plays.values())))
        del made, gone
        assert alive() is None  # and with it its memory, at once
    finally:
        gc.enable()


def test_weights_that_changed_in_place_are_read_and_those_that_moved_are_recorded_anew(tapes):
    model = denoiser()
    made, plain = recipe(model, DDIM()), recipe(model, DDIM(), graphs=False)
    before = images(made, 2).images
    model.network.out.weight.mul_(2)
    assert torch.equal(images(made, 2).images, images(plain, 2).images) and not torch.equal(images(plain, 2).images, before)
    assert len(tapes) == 1
    for weight in model.parameters():
        weight.data = weight.data + 0.01
    assert torch.equal(images(made, 2).images, images(plain, 2).images) and len(tapes) == 2


def test_a_model_that_guides_itself_is_recorded_once(tapes):
    model = denoiser()
    played, plain = (images(recipe(Autoguidance(model, model, 2.0), DDIM(), graphs), 2) for graphs in (True, False))
    assert torch.equal(played.images, plain.images) and len(tapes) == 1


def test_a_forward_pass_for_gradients_is_plain(tapes):
    network, given = denoiser().requires_grad_(True).network, (torch.randn(2, *SHAPE), torch.rand(2), torch.zeros(2, dtype=torch.long))
    with Graphs([network]).played():
        for _ in range(3):
            network(*given).mean().backward()
    assert not tapes and network.out.weight.grad is not None


def test_so_many_shapes_are_recorded_and_no_more(tapes):
    network = Recorded(lambda x, label: x + label[:, None], Room())
    with torch.no_grad():
        for n in range(1, SHAPES + 4):
            for _ in range(3):
                x, label = torch.rand(n, 3), torch.rand(n)
                assert torch.equal(network(x, label), x + label[:, None])
    assert plays(tapes) == [2] * SHAPES


def test_a_context_within_itself(tapes):
    made, plain = recipe(denoiser(), DDIM()), recipe(denoiser(), DDIM(), graphs=False)
    with made.computing():
        found = [images(made, 2).images for _ in range(2)]
        assert "forward" in vars(made.denoiser.network)
    assert "forward" not in vars(made.denoiser.network) and all(torch.equal(each, images(plain, 2).images) for each in found)
    assert len(tapes) == 1


def test_an_error_leaves_the_network_as_it_was():
    network = denoiser().network
    with pytest.raises(RuntimeError, match="on the way"), Graphs([network]).played():
        raise RuntimeError("on the way")
    assert "forward" not in vars(network)


def test_without_a_gpu_or_a_network_it_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"graphs=true .* the network is not on one: leave it out"):
        Recipe(denoiser(), DDIM(), Trailing(6), SHAPE, graphs=True)
    monkeypatch.setattr("diffusion.generate.device_of", lambda denoiser: torch.device("cuda"))
    exact = GaussianMixture(torch.zeros(1, *SHAPE), torch.ones(1), schedule=Cosine())
    with pytest.raises(ValueError, match=r"graphs=true .* GaussianMixture has none: leave it out"):
        Recipe(exact, DDIM(), Trailing(6), SHAPE, graphs=True)
