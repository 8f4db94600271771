"""Models of Stable Diffusion folders with all that samples others: samplers, guidance, precisions, sizes, edits."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import samplers
from diffusion.checkpoint import load, second
from diffusion.denoiser import Denoiser
from diffusion.editing import edited
from diffusion.generate import HALVES, trajectories
from diffusion.grids import Karras
from diffusion.guidance import Autoguidance, CFGPlusPlus, ClassifierFree, Interval, Rescale, Unconditional
from diffusion.samplers import DDIM, last

pytestmark = pytest.mark.xdist_group("foreign")
SEEDS = [5, 6]


@pytest.fixture(scope="module")
def model(stable_diffusion):
    return load(stable_diffusion["one"])


def asked(recipe, *texts):
    return recipe.conditions.parse(list(texts or ("a cat", "a dog")))


def latents(recipe, cond, seeds=SEEDS):
    with recipe.computing():
        return last(trajectories(recipe.denoiser, recipe.sampler, recipe.grid, recipe.shape, seeds, cond)).x


@pytest.mark.parametrize("name", [name for name in samplers.__all__ if name not in ("State", "last", "DDIMInversion")])
def test_every_sampler(model, name):
    """Those with adaptive steps to a coarse tolerance."""
    few = {"RK45": {"rtol": 0.5, "atol": 0.5}, "DPMAdaptive": {"rtol": 0.5, "atol": 0.5}, "Langevin": {"walk": 2}}
    recipe = model.recipe(getattr(samplers, name)(**few.get(name, {})), Karras(3), {"cfg": partial(ClassifierFree, scale=3.0)})
    made = recipe(SEEDS, asked(recipe))
    assert made.images.shape == (2, 16, 16, 3) and made.images.dtype == torch.uint8 and made.nfe >= 3
    assert not torch.equal(made.images[0], made.images[1])


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [partial(ClassifierFree, scale=3.0, negative="a red house")],
        [partial(CFGPlusPlus, scale=0.6)],
        [partial(ClassifierFree, scale=3.0), Rescale],
        [partial(ClassifierFree, scale=3.0), Interval],
        [Unconditional],
    ],
    ids=["none", "negative", "cfg++", "rescale", "interval", "unconditional"],
)
def test_every_guidance(model, stages):
    recipe = model.recipe(DDIM(), Karras(3), stages)
    x = latents(recipe, asked(recipe))
    assert x.isfinite().all()
    plain = model.recipe(DDIM(), Karras(3), {})
    assert (stages == []) == torch.equal(x, latents(plain, asked(plain)))


def test_the_null_condition_is_the_empty_prompt(model):
    recipe = model.recipe(DDIM(), Karras(3), {})
    torch.testing.assert_close(latents(recipe, None), latents(recipe, asked(recipe, "", "")), rtol=1e-5, atol=1e-5)
    assert (latents(recipe, None) - latents(recipe, asked(recipe))).abs().max() > 1e-2


def test_a_second_folder_guides(model, stable_diffusion):
    """Autoguidance by another model of the same latents; and one of other betas or latents is refused as a run's is."""
    bad = second(str(stable_diffusion["one"]), Denoiser)
    recipe = model.recipe(DDIM(), Karras(3), [partial(Autoguidance, bad=bad, weight=2.0)])
    plain = model.recipe(DDIM(), Karras(3), {})
    torch.testing.assert_close(latents(recipe, asked(recipe)), latents(plain, asked(plain)))
    assert recipe.describe()["guidance"]["bad"]["weights"] == model.weights


def test_the_folder_s_own_way(stable_diffusion):
    """PNDM on its leading grid in one, DDIM in the other, each guided as diffusers' pipeline guides where nothing is said."""
    found = {name: load(folder).recipe().describe() for name, folder in stable_diffusion.items()}
    assert [found[name]["sampler"]["name"] for name in ("one", "two")] == ["PNDM", "DDIM"]
    assert all(said["sampler"]["grid"] == {"name": "Leading", "steps": 50, "offset": 1} for said in found.values())
    assert all((said["guidance"]["name"], said["guidance"]["scale"]) == ("ClassifierFree", 7.5) for said in found.values())


def test_an_image_depends_on_its_seed_and_prompt_alone(model):
    whole, one = (model.recipe(DDIM(1.0), Karras(3), {}, batch_size=size) for size in (2, 1))
    a, b = whole(SEEDS, asked(whole)).images, one(SEEDS[::-1], asked(one, "a dog", "a cat")).images.flip(0)
    assert (a.int() - b.int()).abs().max() <= 1


def test_a_size(model):
    """Also one that the autoencoder's factor does not divide; the latents cover it."""
    recipe = model.recipe(DDIM(), Karras(3), {}, size=model.size(24, 19))
    assert recipe.shape == (4, 12, 10) and recipe([1], asked(recipe, "a cat")).images.shape == (1, 24, 19, 3)


@pytest.mark.parametrize(
    ("family", "precision"),
    [("one", "16-true"), ("two", "bf16-mixed")]
    + [
        pytest.param(family, precision, marks=pytest.mark.slow)
        for family, precision in product(("one", "two"), ("bf16-mixed", "bf16-true", "16-mixed", "16-true"))
        if (family, precision) not in (("one", "16-true"), ("two", "bf16-mixed"))
    ],
)
def test_half_precision(stable_diffusion, family, precision):
    """The U-Net computes in it, the state and the autoencoder stay in float32; its attention is upcast where the folder says so."""
    model = load(stable_diffusion[family])
    exact = model.recipe(DDIM(), Karras(4), {})
    expected = latents(exact, asked(exact))
    model.to("cpu", precision)
    recipe = model.recipe(DDIM(), Karras(4), {}, precision=precision)
    assert {p.dtype for p in model.denoiser.parameters()} == {HALVES.get(precision, torch.float32)}
    x = latents(recipe, asked(recipe))
    relative = ((x - expected).abs().max() / expected.abs().max()).item()
    assert x.dtype == torch.float32 and 1e-6 < relative < (0.05 if "bf16" in precision else 0.01)
    seen = []
    hook = recipe.codec.network.vae.decoder.register_forward_hook(lambda module, given, made: seen.append((made.dtype, len(made))))
    with recipe.computing():
        images = recipe.codec.decode(x)
    hook.remove()
    assert seen == [(torch.float32, 1), (torch.float32, 1)]  # a picture at a time
    torch.testing.assert_close(images, exact.codec.decode(x), rtol=0, atol=0)


def test_double_precision(stable_diffusion):
    """What of float32's images is its rounding; the network is float32 again afterwards."""
    model = load(stable_diffusion["two"])
    single, double = (model.recipe(DDIM(), Karras(4), {}, precision=name) for name in ("32-true", "64-true"))
    a, b = latents(single, asked(single)), latents(double, asked(double))
    assert 0 < (a - b).abs().max() / a.abs().max() < 1e-4
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}


def test_weights_and_precision_belong_together(stable_diffusion):
    model = load(stable_diffusion["one"])
    with pytest.raises(
        ValueError, match=r"precision=16-true needs weights of that type: load the model again, and say to\(device, precision"
    ):
        model.recipe(precision="16-true")
    model.to("cpu", "16-true")
    for other in ("32-true", "bf16-true"):
        with pytest.raises(ValueError, match=f"precision={other} needs weights of that type"):
            model.recipe(precision=other)


def test_attention_is_fused_or_upcast(stable_diffusion):
    kinds = {
        name: {type(processor).__name__ for processor in load(folder).denoiser.network.network.unet.attn_processors.values()}
        for name, folder in stable_diffusion.items()
    }
    assert kinds == {"one": {"AttnProcessor2_0"}, "two": {"UpcastAttention"}}


def test_painting_keeps_the_rest(model, tmp_path):
    """The latents that the mask leaves are those of the picture, whatever the prompt."""
    levels, mask = np.arange(16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3), np.zeros((16, 16), dtype=np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    edit = {"_target_": "diffusion.editing.Inpaint", "image": str(tmp_path / "a.png"), "mask": str(tmp_path / "m.png")}
    recipe = edited(model.recipe(DDIM(), Karras(4)), edit)
    x, image = latents(recipe, asked(recipe)), recipe.codec.encode(torch.from_numpy(levels)[None])
    assert torch.equal(x[..., :4], image[..., :4].expand(2, -1, -1, -1))
    assert (x[0, ..., 4:] - x[1, ..., 4:]).abs().max() > 0.1
