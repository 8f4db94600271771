"""Models of Stable Diffusion folders on a device that is pretended: text on the CPU, the rest there, and the pictures of the CPU."""

from functools import partial

import pytest
import torch
from pretended import HERE, Device

from diffusion.checkpoint import load
from diffusion.editing import FromImage, Inpaint
from diffusion.grids import Karras
from diffusion.guidance import ClassifierFree
from diffusion.samplers import DDPM, EulerAncestral
from diffusion.schedules import discrete

pytestmark = [pytest.mark.xdist_group("foreign"), pytest.mark.usefixtures("noise_of_a_device")]
LATENTS = torch.linspace(-1, 1, 4 * 8 * 8).reshape(4, 8, 8)


def images(model, sampler, guidance, device):
    discrete._table.cache_clear()
    recipe = model.to(device).recipe(sampler, Karras(3), guidance)
    return recipe([1, 2], recipe.conditions.parse(["a cat", "a dog"])).images


@pytest.mark.parametrize("family", ["two", pytest.param("one", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        (EulerAncestral(), {"cfg": partial(ClassifierFree, scale=3.0, negative="a bird")}),
        (DDPM(), {"cfg": partial(ClassifierFree, scale=3.0)}),
        (FromImage(EulerAncestral(), LATENTS), {}),
        (Inpaint(EulerAncestral(), LATENTS, (LATENTS[:1] > 0).float()), {}),
    ],
    ids=["negative", "empty", "img2img", "inpaint"],
)
def test_the_same_pictures(stable_diffusion, family, sampler, guidance):
    there, here = (load(stable_diffusion[family]) for _ in range(2))
    with Device():
        found = images(there, sampler, guidance, HERE)
    assert (found.int() - images(here, sampler, guidance, "cpu").int()).abs().max() <= 1  # fused attention adds in another order there
