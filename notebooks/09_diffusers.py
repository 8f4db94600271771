# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Bringing a diffusers model
# Most published pixel models are folders of diffusers: `unet/`, `scheduler/`, `model_index.json`. This project opens such a folder like a
# run of its own, as *its own* network, so that every sampler, guidance, metric and edit goes with it. To have one without a download, we
# train it here, with diffusers alone, on scikit-learn's digits.

# %%
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from diffusion.checkpoint import load
from diffusion.codecs import Pixels
from diffusion.convert import write_as
from diffusion.editing import Inpaint
from diffusion.generate import generate
from diffusion.grids import Trailing
from diffusion.guidance import Clip
from diffusion.metrics import DigitsClassifier, Moments, frechet_distance
from diffusion.noise import SeededNoise
from diffusion.pictures import tile
from diffusion.samplers import DDIM, DDPM, DEIS, DPM2, DPMPP2M, DPMPP2MSDE, IPNDM, LMS, EulerAncestral, Heun, UniPC, last

torch.manual_seed(0)
folder = tempfile.TemporaryDirectory()
digits = (torch.from_numpy(load_digits().images) * 255 / 16).round().to(torch.uint8)[..., None]
x0 = Pixels().encode(digits)
unet = diffusers.UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(32, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
)
scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
optimizer, steps = torch.optim.Adam(unet.parameters(), lr=2e-3), 240
cooling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
for _ in range(steps):
    clean = x0[torch.randint(len(x0), (64,))]
    noise, label = torch.randn_like(clean), torch.randint(1000, (64,))
    loss = (unet(scheduler.add_noise(clean, noise, label), label).sample - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    cooling.step()
theirs = Path(folder.name, "digits-of-diffusers")
diffusers.DDPMPipeline(unet.eval().requires_grad_(False), scheduler).save_pretrained(theirs)
print("\n".join(sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file())))

# %% [markdown]
# ## The same network
# `load` reads the folder. Nothing of it is executed: its files choose among classes that are known here, and the weights are safetensors.
# What comes back is a `Model` with the scheduler's betas as its schedule, and a U-Net whose weights have other names and the same values.

# %%
model = load(theirs)
network = model.denoiser.network
x, label = torch.randn(16, 1, 8, 8), torch.randint(1000, (16,)).float()
with torch.no_grad():
    apart = (network(x, label) - unet(x, label).sample).abs().max().item()
print(
    f"{type(model.denoiser.schedule).__name__}, {type(model.denoiser.parameterization).__name__}; the outputs differ by {apart:.0e} at most"
)
knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
alpha = model.denoiser.schedule(knots)[0]
assert apart < 1e-5
torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)

# %% [markdown]
# And so the same pictures. From one noise, 20 steps of DDIM by both (without clipping, of which diffusers has a version of its own):

# %%
ddim = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, timestep_spacing="trailing")
ddim.set_timesteps(20)
seeds = range(8)
z = SeededNoise(list(seeds), "cpu")(torch.empty(8, 1, 8, 8))
there = z
with torch.no_grad():
    for step in ddim.timesteps:
        there = ddim.step(unet(there, step).sample, step, there).prev_sample
    times = Trailing(20)(model.denoiser.schedule)
    here = last(DDIM()(model.denoiser, z, times)).x
print(f"after 20 steps: {(here - there).abs().max():.0e}")

assert (here - there).abs().max() < 1e-3

# %% [markdown]
# ## Every sampler
# diffusers would want another scheduler class for each. Here the folder's own way is the default (`model.recipe()`), and any other is an
# argument. The same eight seeds by eleven samplers, 20 steps each:

# %%
samplers = {
    "DDPM": DDPM(),
    "DDIM": DDIM(),
    "Euler a": EulerAncestral(),
    "Heun": Heun(),
    "DPM2": DPM2(),
    "LMS": LMS(),
    "iPNDM": IPNDM(),
    "DPM++ 2M": DPMPP2M(),
    "DPM++ 2M SDE": DPMPP2MSDE(),
    "UniPC": UniPC(),
    "DEIS": DEIS(),
}
figure, axes = plt.subplots(4, 3, figsize=(14, 5), layout="constrained")
pictures = {name: model.recipe(sampler, Trailing(20), [Clip])(range(8)) for name, sampler in samplers.items()}
for axis, (name, made) in zip(axes.flat, pictures.items(), strict=False):
    axis.imshow(tile(made.images, 8))
    axis.set_title(f"{name}: {made.nfe} calls", fontsize=10)
axes[-1, -1].imshow(tile(digits[:8], 8))
axes[-1, -1].set_title("real digits", fontsize=10)
for axis in axes.flat:
    axis.axis("off")

# %% [markdown]
# Those without noise of their own (DDIM, Heun, DPM2, LMS, iPNDM, DPM++ 2M, UniPC, DEIS) follow one flow, so that a seed is one digit in
# all of them; those with noise go elsewhere (Euler ancestral and DDPM to the same place: they are one step). Which is nearest to the data
# after ten calls is a question for chapter 7's distance.

# %%
extractor = DigitsClassifier(cache=folder.name)


def moments(images):
    found = Moments(64)
    found.update(extractor(images))
    return found


reference, distances = moments(digits), {}
for name in ("DDPM", "DDIM", "DPM++ 2M", "UniPC"):
    made = model.recipe(samplers[name], Trailing(10), [Clip])(range(300))
    distances[name] = frechet_distance(reference, moments(made.images))
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
bars = axis.barh(list(distances), list(distances.values()))
axis.bar_label(bars, fmt="%.1f", padding=2)
axis.margins(x=0.12)  # for the labels
axis.set(title="diffusers' model, ten calls, four samplers", xlabel="fd-digits@300")
axis.invert_yaxis()
assert distances["DDPM"] > 1.2 * min(distances.values())

# %% [markdown]
# ## And what else a run can do
# An edit is a sampler around a sampler. Here the lower half of each digit is painted anew, four times.

# %%
image, mask = x0[[3, 8, 20]].repeat_interleave(4, 0), torch.zeros(1, 8, 8)
mask[:, 4:] = 1
painted = generate(Clip(model.denoiser), Inpaint(DDPM(), image, mask, resample=2), Trailing(20), (1, 8, 8), seeds=range(12))
figure, axes = plt.subplots(2, 1, figsize=(9, 2.6), layout="constrained")
for axis, title, images in zip(axes, ["digits", "the upper half kept"], [Pixels().decode(image), painted], strict=True):
    axis.imshow(tile(images, 12))
    axis.set_title(title)
    axis.axis("off")
assert torch.equal(painted[:, :4], Pixels().decode(image)[:, :4])

# %% [markdown]
# ## There and back
# `write_as` writes the folder as a run, to be trained on (`train.py init.ckpt=...`), and a run as a folder that diffusers opens, with a
# card that says what is known of it. On the command line it is `python -m diffusion.convert FROM TO`.

# %%
run, back = Path(folder.name, "run"), Path(folder.name, "back")
print(write_as(str(theirs), str(run)))
print(write_as(str(run), str(back), kind="diffusers"))
again = diffusers.DDPMPipeline.from_pretrained(back, local_files_only=True).unet
assert all(torch.equal(weight, unet.state_dict()[name]) for name, weight in again.state_dict().items())
print("diffusers opens what came back, every weight the same")

# %% [markdown]
# ## What to try
# * `python sample.py ckpt=FOLDER sampler=unipc grid.steps=10` does it for any such folder, as `google/ddpm-cifar10-32` is one.
# * `python -m diffusion.evaluate ckpt=FOLDER reference=cifar10 metric=fid` measures it, with a passport.
# * Change a value in `unet/config.json`, such as `act_fn`. What is honoured, and in which words is the rest refused?
# * Weights by other code than diffusers: docs/weights.md. Stable Diffusion, sampled alike with prompts: docs/stable_diffusion.md.
