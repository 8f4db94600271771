"""Stable Diffusion folders against diffusers' own pipeline, picture by picture: the same starting state, noise, prompts and steps.

diffusers computes its levels in float32. Where it differs from here by definition, the difference is taken out and named: it ends DDIM and
PNDM at the level of the first time step (`set_alpha_to_one=false`), and it tells the network whole steps on Karras's ladder. Its PNDM
averages outputs whatever they mean, which for v is another method; its DDIM keeps the eps of an x_0 that it has clipped."""

import inspect
from dataclasses import dataclass, replace

import pytest
import torch
from stable_folders import BETAS
from walks import close

from diffusion.checkpoint import load
from diffusion.denoiser import Denoiser
from diffusion.editing import FromImage
from diffusion.generate import trajectories
from diffusion.samplers import last
from diffusion.support.build import build

diffusers = pytest.importorskip("diffusers")
from diffusion.foreign.scheduler import ways_of  # noqa: E402

pytestmark = pytest.mark.xdist_group("foreign")
STEPS, SEEDS, SCALE = 10, [3, 8], 7.5
PROMPTS, NEGATIVE = ["a cat, in [a] hat", "two dogs"], "blurry"
CASES = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddpm-clipped": ("DDPMScheduler", {"clip_sample": True, "clip_sample_range": 1.5}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddim-trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim-trailing-zero-snr": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {"timestep_spacing": "trailing"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
ONLY = {"pndm": "one", "ddim-trailing-zero-snr": "two"}  # of v, another method; of epsilon, refused where x_1 says nothing of x_0


@dataclass(frozen=True)
class EndingAt:
    """A grid that ends at the first time step, or as it did."""

    grid: object
    first: bool

    def __call__(self, schedule):
        times = self.grid(schedule)
        return torch.cat([times[:-1], torch.full((1,), 1 / 1000 if self.first else 0.0, dtype=torch.float64)])


@pytest.fixture(scope="module")
def both(stable_diffusion):
    """By family: our model of a folder, and diffusers' pipeline of it."""
    found = {}
    for name, folder in stable_diffusion.items():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        found[name] = load(folder), pipeline
    return found


def scheduler(case, family):
    name, settings = CASES[case]
    kind = getattr(diffusers, name)
    settings = BETAS | settings | {"prediction_type": "epsilon" if family == "one" else "v_prediction"}
    return kind(**{key: value for key, value in settings.items() if key in inspect.signature(kind).parameters})


def fractional(scheduler):
    """The scheduler, which on a ladder tells the network the step of a level, and not the whole one nearest."""
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log().numpy()
    whole = scheduler.set_timesteps

    def set_timesteps(*args, **more):
        whole(*args, **more)
        steps = [float(scheduler._sigma_to_t(sigma, table)) for sigma in scheduler.sigmas[:-1].numpy()]
        scheduler.timesteps = torch.tensor(steps, dtype=torch.float64)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def ours_like(model, scheduler, folder):
    """The model with the schedule and the way to sample of this scheduler, by its file; and its recipe of few steps."""
    scheduler.save_pretrained(folder)
    ways = ways_of(folder)
    denoiser = Denoiser(model.denoiser.network, build(ways["schedule"]), build(ways["parameterization"]))
    grid = EndingAt(build(ways["grid"] | {"steps": STEPS}), scheduler.config.get("set_alpha_to_one") is False)
    ways["guidance"]["cfg"] |= {"scale": SCALE, "negative": NEGATIVE}
    return replace(model, denoiser=denoiser, config=model.config | ways).recipe(grid=grid)


def beginning(scheduler, recipe):
    """What the pipeline is given as latents, for x_1 = sigma_1 z to be where it begins, and generators that have drawn z."""
    alpha, sigma = recipe.denoiser.schedule(recipe.grid(recipe.denoiser.schedule)[0])
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    z = torch.stack([torch.randn(recipe.shape, generator=generator) for generator in generators])
    scheduler.set_timesteps(STEPS)
    in_ratios = hasattr(scheduler, "init_noise_sigma") and scheduler.init_noise_sigma > 1.5  # it moves x/alpha
    return z * sigma / (alpha * scheduler.init_noise_sigma if in_ratios else 1), generators


def theirs(pipeline, scheduler, latents, generators, output):
    pipeline.scheduler = scheduler
    called = dict(prompt=PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=STEPS, guidance_scale=SCALE)
    return pipeline(latents=latents, generator=generators, output_type=output, **called).images


def cases():
    """Each case of each family that it is of; the second family's are slow, but for those that show what it differs in."""
    shown = {"ddim", "ddim-trailing-zero-snr", "euler-ancestral", "dpmpp-2m"}
    for case in CASES:
        for family in ("one", "two"):
            if ONLY.get(case, family) == family:
                yield pytest.param(case, family, marks=[pytest.mark.slow] if family == "two" and case not in shown else [])


@pytest.mark.parametrize(("case", "family"), cases())
def test_the_pipeline(both, tmp_path, case, family):
    """The state at the end, and with it the pictures."""
    model, pipeline = both[family]
    saved = scheduler(case, family)
    recipe = ours_like(model, saved, tmp_path)
    saved = fractional(saved) if case == "dpmpp-2m-karras" else saved
    latents, generators = beginning(saved, recipe)
    cond = recipe.conditions.parse(PROMPTS)
    x = last(trajectories(recipe.denoiser, recipe.sampler, recipe.grid, recipe.shape, SEEDS, cond)).x
    expected = theirs(pipeline, saved, latents, generators, "latent")
    close(x, expected, 1e-4)
    pictures = torch.from_numpy(pipeline.vae.decode(expected / 0.18215).sample.clamp(-1, 1).detach().numpy()).permute(0, 2, 3, 1)
    assert (recipe.codec.decode(x).double() - (pictures.double() + 1) * 127.5).abs().max() < 1


@pytest.mark.parametrize("case", ["ddim-trailing", "euler-ancestral", "dpmpp-2m"])
@pytest.mark.parametrize("steps", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_an_image_to_an_image(both, tmp_path, case, steps):
    """diffusers' own pipeline for it, given latents. Its strength is a share of the steps, ours the time that they begin at."""
    model, pipeline = both["one"]
    saved = scheduler(case, "one")
    recipe = ours_like(model, saved, tmp_path)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    image = torch.randn(recipe.shape, generator=torch.Generator().manual_seed(1))
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"} | {"scheduler": saved}
    second = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    called = dict(prompt=PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=STEPS, guidance_scale=SCALE, output_type="latent")
    expected = second(image=image.expand(2, -1, -1, -1), strength=steps / STEPS, generator=generators, **called).images
    cond = recipe.conditions.parse(PROMPTS)
    edit = FromImage(recipe.sampler, image, recipe.grid(recipe.denoiser.schedule)[-1 - steps].item())
    close(last(trajectories(recipe.denoiser, edit, recipe.grid, recipe.shape, SEEDS, cond)).x, expected, 1e-4)
