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
# # A first look
# Everything is a function of a time t in [0, 1]: x_t = alpha_t x_0 + sigma_t eps. A schedule gives alpha and sigma.

# %%
import matplotlib.pyplot as plt
import torch

from diffusion.schedules import Cosine, Flow, Linear

t = torch.linspace(0, 1, 500, dtype=torch.float64)
for schedule in (Linear(), Cosine(), Flow()):
    alpha, sigma = schedule(t)
    plt.plot(t, alpha, label=f"{type(schedule).__name__}: alpha")
    plt.plot(t, sigma, "--", label="sigma")
plt.legend()
plt.xlabel("t")

# %% [markdown]
# A denoiser estimates (x_0, eps) from x_t. Two are known exactly, with no training: that of a Gaussian mixture and that of a finite
# data set. Any sampler runs on them, so a sampler's own error can be seen.

# %%
from diffusion.grids import Trailing
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, DDPM, last

angle = torch.arange(8) * torch.pi / 4
mixture = GaussianMixture(2 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.15), schedule=Cosine())
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
for axis, (sampler, steps) in zip(axes, [(DDIM(), 5), (DDIM(), 50), (DDPM(), 50)], strict=True):
    torch.manual_seed(0)
    state = last(sampler(mixture, torch.randn(2000, 2, dtype=torch.float64), Trailing(steps)(mixture.schedule)))

    axis.scatter(*state.x.T, s=2)
    axis.set_title(f"{sampler}, {steps} steps")

# %% [markdown]
# The exact denoiser of real images: scikit-learn's digits. Following the probability flow to t = 0 ends on a training image, as it
# must: the only error a trained network could "make" here is to generalise.

# %%
from sklearn.datasets import load_digits

from diffusion.codecs import Pixels
from diffusion.generate import generate
from diffusion.oracles import EmpiricalDistribution
from diffusion.pictures import tile

digits = torch.from_numpy(load_digits().images * 255 / 16).round().to(torch.uint8)[..., None]
exact = EmpiricalDistribution(Pixels().encode(digits), Cosine(), labels=torch.from_numpy(load_digits().target))
images = generate(exact, DDIM(), Trailing(50), (1, 8, 8), seeds=range(100), cond=torch.arange(10).repeat_interleave(10))
plt.figure(figsize=(5, 5))
plt.imshow(tile(images, 10))
plt.axis("off")

nearest = (images.flatten(1).float()[:, None] - digits.flatten(1).float()[None]).abs().amax(2).amin(1)
print("largest difference of any pixel from a training image:", nearest.max().item(), "of 255")
assert nearest.max() <= 2
