"""An image is its seed's, for every sampler there is: alone, among three, among all.

The random numbers of a seed, an adaptive sampler's steps and its errors are the image's own, so that what is left is the rounding of the
network's sums, which a matrix product may order otherwise in another batch. An adaptive sampler's steps follow that rounding: in float32
its images agree to its tolerance only, and with a network in float64 as those of any other sampler."""

import pytest
import torch
from torch import nn

from diffusion import samplers
from diffusion.denoiser import Denoiser
from diffusion.generate import Asked, Recipe, generate
from diffusion.grids import Karras
from diffusion.guidance import Autoguidance, ClassifierFree, Clip
from diffusion.parameterization import V
from diffusion.samplers import RK45, DPMAdaptive, Langevin
from diffusion.schedules import Cosine

QUICKER = {"Langevin": Langevin(walk=3)}
EVERY = [QUICKER.get(name, getattr(samplers, name)()) for name in samplers.__all__ if name not in ("State", "last")]
SEEDS, SHAPE = [5, 0, 9, 3, 7, 2**32 - 1, 4], (2, 3, 3)
COND = torch.tensor([0, 4, 2, 9, 1, 1, 3])
GRID = Karras(6, sigma_max=50.0)


class Exact(nn.Module):
    """A network whose arithmetic is each image's own: no product of matrices, in the dtype of its input."""

    def forward(self, x, label, cond):
        kind = 0 if cond is None else cond.to(x)[:, None, None, None]
        return torch.sin((0.9 + 0.1 * kind) * x + 0.1 * kind + label.to(x)[:, None, None, None] / 1000)


class Raw:
    """A codec that changes nothing."""

    def decode(self, x):
        return x


def made(denoiser, sampler, seeds=SEEDS, cond=COND, size=7):
    guided = Clip(ClassifierFree(denoiser, 2.0), low=-1.5, high=1.5)
    return generate(guided, sampler, GRID, SHAPE, seeds, cond, size, codec=Raw())


@pytest.mark.parametrize("sampler", EVERY, ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_an_image_is_its_seed_s_whatever_its_batch(sampler, dtype):
    """Bit for bit where the network's arithmetic is: nothing else may depend on a neighbour."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        denoiser = Denoiser(Exact(), Cosine(), V())
        whole = made(denoiser, sampler)
        assert whole.dtype == dtype and whole.isfinite().all() and len(whole.unique(dim=0)) == len(SEEDS)
        for size in (1, 3):
            assert torch.equal(made(denoiser, sampler, size=size), whole)
        order = [4, 6, 0, 2, 1, 3, 5]
        assert torch.equal(made(denoiser, sampler, [SEEDS[i] for i in order], COND[order]), whole[order])
    finally:
        torch.set_default_dtype(before)


class Mixing(Exact):
    """A network that is a matrix product, whose rounding depends on the size of the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(18, 18, generator=torch.Generator().manual_seed(0)) / 5)

    def forward(self, x, label, cond):
        return super().forward((x.flatten(1) @ self.weight.to(x)).reshape(x.shape), label, cond)


@pytest.mark.parametrize("sampler", EVERY, ids=lambda sampler: type(sampler).__name__)
def test_what_rounding_leaves_of_it(sampler):
    """In float32 1e-4, a hundredth of a level of pixels, or what an adaptive sampler's tolerance allows."""
    denoiser = Denoiser(Mixing(), Cosine(), V())
    whole = made(denoiser, sampler)
    tolerance = {RK45: 1e-3, DPMAdaptive: 0.1}.get(type(sampler), 1e-4)
    for size in (1, 3):
        assert (made(denoiser, sampler, size=size) - whole).abs().max() <= tolerance


@pytest.mark.parametrize("sampler", [RK45(), RK45(1e-7, 1e-7), DPMAdaptive(), DPMAdaptive(0.001, 0.0001)], ids=str)
def test_a_network_in_float64_leaves_an_adaptive_sampler_its_steps(sampler):
    """The state stays float32, so that its noise does; a second model counts too, and afterwards all weights are as they were."""
    denoisers = [Denoiser(Mixing(), Cosine(), V()) for _ in range(2)]
    guided = Autoguidance(Clip(ClassifierFree(denoisers[0], 2.0), low=-1.5, high=1.5), denoisers[1])

    def spread(precision):
        whole, alone = (Recipe(guided, sampler, GRID, SHAPE, Raw(), batch_size=b, precision=precision)(SEEDS, COND).images for b in (7, 1))
        return (alone - whole).abs().max()

    before = [denoiser.network.weight.clone() for denoiser in denoisers]
    assert spread("64-true") <= 1e-7 < spread("32-true")
    assert all(torch.equal(d.network.weight, w) and w.dtype == torch.float32 for d, w in zip(denoisers, before, strict=True))


@pytest.mark.parametrize("sampler", [RK45(), DPMAdaptive(), DPMAdaptive(order=2)], ids=str)
def test_an_image_that_has_arrived_is_not_computed_further(sampler):
    """As many evaluations in a batch as one by one, and the condition of each stays its own; a recipe counts the mean."""

    def cost(seeds, cond, size):
        asked = Asked(Denoiser(Exact(), Cosine(), V()))
        generate(asked, sampler, GRID, SHAPE, seeds, cond, size, codec=Raw())
        return asked.images

    alone = [cost([seed], COND[i : i + 1], 1) for i, seed in enumerate(SEEDS)]
    assert len(set(alone)) > 1 and cost(SEEDS, COND, len(SEEDS)) == sum(alone)
    recipe = Recipe(Denoiser(Exact(), Cosine(), V()), sampler, GRID, SHAPE, codec=Raw(), batch_size=3)
    assert recipe(SEEDS, COND).nfe == round(sum(alone) / len(SEEDS))
