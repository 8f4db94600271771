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
# # 1. The forward process and the schedules
# A diffusion model learns to undo one thing: the addition of Gaussian noise. At time $t \in [0, 1]$ a clean sample $x_0$ has become
#
# $$x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I),$$
#
# so that $t = 0$ is the data and $t = 1$ is (nearly) noise. A *schedule* is the pair of functions $(\alpha_t, \sigma_t)$, and nothing else.
# This chapter looks at four of them, finds that they are one, and ends with the trap in which Stable Diffusion sits.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

from diffusion.codecs import Pixels
from diffusion.denoiser import Denoiser
from diffusion.generate import generate
from diffusion.grids import Trailing
from diffusion.networks import MLP
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDIM
from diffusion.schedules import EDM, Cosine, Flow, Linear, ScaledLinear

F64 = {"dtype": torch.float64}
schedules = {"linear (DDPM)": Linear(), "cosine (IDDPM)": Cosine(), "flow (straight paths)": Flow(), "EDM": EDM()}
t = torch.linspace(0.001, 0.999, 500, **F64)
figure, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
for name, schedule in schedules.items():
    alpha, sigma = schedule(t)
    axes[0].plot(t, alpha, label=name)
    axes[1].semilogy(t, sigma)
    axes[2].plot(t, schedule.log_snr(t))
for axis, title in zip(
    axes, ["the signal's factor alpha", "the noise's factor sigma", "their clock: log SNR = 2 log(alpha/sigma)"], strict=True
):
    axis.set(title=title, xlabel="t")
axes[2].set_ylim(-15, 15)
_ = axes[0].legend()

# %% [markdown]
# Linear and cosine *preserve variance*, $\alpha_t^2 + \sigma_t^2 = 1$: data of variance 1 have it at every time. Flow matching mixes
# linearly, $\alpha = 1 - t$, $\sigma = t$, and EDM leaves the signal alone and lets the noise *explode* to $\sigma = 80$. The third panel
# has what they share: a log signal-to-noise ratio $\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$ that falls. Here is a photograph under
# each; a picture is divided by $\sqrt{\alpha^2 + \sigma^2}$ so that one can look at it.

# %%
for schedule in (Linear(), Cosine()):
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))

photo = torch.from_numpy(load_sample_image("flower.jpg")[64:384:4, 160:480:4].copy())[None]  # uint8 [1, 80, 80, 3]
x0 = Pixels().encode(photo).double()
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), **F64)


def noised(schedule, t):
    """x_t of the photograph with the same eps everywhere, at unit size."""
    alpha, sigma = schedule(t)
    return (alpha * x0 + sigma * eps) / (alpha**2 + sigma**2).sqrt()


def rows(title, times, names):
    figure, axes = plt.subplots(len(schedules), len(names), figsize=(1.3 * len(names), 5.8), layout="constrained")
    for row, (label, schedule) in zip(axes, schedules.items(), strict=True):
        for axis, at in zip(row, times(schedule), strict=True):
            axis.imshow(Pixels().decode(noised(schedule, at))[0])
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=9)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    figure.suptitle(title)


even = torch.linspace(0.05, 0.95, 9, **F64)
rows("At the same time the four look different", lambda schedule: even, [f"t = {v:.2f}" for v in even])

# %% [markdown]
# Now the same at equal log SNR, each at the time when *it* gets there, `schedule.time(lambda)`.

# %%
levels = torch.linspace(8, -8, 9, **F64)
rows("At the same log SNR they are one picture", lambda schedule: schedule.time(levels), [f"log SNR {v:.0f}" for v in levels])
reference = noised(Cosine(), Cosine().time(levels[4]))
for schedule in schedules.values():
    torch.testing.assert_close(noised(schedule, schedule.time(levels[4])), reference)

# %% [markdown]
# Dividing by $\alpha_t$ says why: $x_t / \alpha_t = x_0 + (\sigma_t / \alpha_t)\, \varepsilon$ depends on the ratio alone. So a schedule is
# a clock and a scale. A perfect denoiser would not care which one it is given; a network does, since the schedule says what
# size its input has and, with $t$ drawn evenly, on which noise levels it spends its training. A time is worth $|d\lambda/dt|$:
# where the curve of $\lambda$ is flat a model trains much on little change.

# %% [markdown]
# ## The density
# What happens to *all* the data at once is seen in one dimension. The density of $x_t$ is that of the data, shrunk by $\alpha_t$, blurred
# by $\sigma_t$. Three atoms become one bell. Two equal bells a distance $d$ apart have one top when their deviation exceeds $d/2$: the
# dotted lines are $\sigma_t/\alpha_t = 0.7$ and 0.4 for the two gaps here. Around such times a sampler, which goes the other way, decides
# where a sample will belong.

# %%
x = torch.linspace(-2.5, 2.5, 300, **F64)
atoms = torch.tensor([[-1.2], [0.2], [1.0]])
figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), sharey=True, layout="constrained")
for axis, (name, schedule) in zip(axes, list(schedules.items())[:3], strict=True):
    data = GaussianMixture(atoms, torch.full((3,), 0.05), torch.tensor([0.3, 0.5, 0.2]), schedule)
    density = torch.stack([data.log_prob(x[:, None], at).exp() for at in t[::5]], 1)
    axis.imshow(density.clamp(max=1.2), origin="lower", aspect="auto", extent=(0, 1, -2.5, 2.5), cmap="magma")
    merged = schedule.time(-2 * torch.tensor([0.4, 0.7], **F64).log())
    for at in merged:
        axis.axvline(at, color="white", ls=":")
    axis.set(title=f"{name}: bells merge at t = {merged[0]:.2f} and {merged[1]:.2f}", xlabel="t")
_ = axes[0].set_ylabel("x_t")

# %% [markdown]
# ## The trap: noise that is not only noise
# At $t = 1$ we start from $\mathcal N(0, \sigma_1^2)$. Is $x_1$ that? Under Stable Diffusion's schedule $\alpha_1 = 0.068$, and 0.068 of a
# picture is left. That seems little, but a *mean* over many pixels is known precisely: of $D = 48^2$ pixels it has a noise of
# $1/\sqrt D = 0.02$. A grey $b \in [-1, 1]$ shifts it by up to 0.068, three deviations. A model that is started from noise of mean 0 takes
# this for the news that the picture is of medium brightness (Lin et al. 2305.08891).
#
# We need no network to see it. The data are pictures of one grey each, evenly between black and white, and the denoiser is the exact one.

# %%
greys = torch.linspace(-1, 1, 11)
pictures = greys.reshape(11, 1, 1, 1).expand(11, 1, 48, 48)
found = {}
for name, schedule in {"Stable Diffusion's": ScaledLinear(), "with zero terminal SNR": ScaledLinear(zero_terminal_snr=True)}.items():
    exact = GaussianMixture(pictures, torch.full((11,), 0.02), schedule=schedule)
    print(f"{name:24s} alpha(1) = {schedule(torch.ones(1, **F64))[0].item():.4f}")
    found[name] = Pixels().encode(generate(exact, DDIM(), Trailing(100), (1, 48, 48), range(132), batch_size=44)).mean((1, 2, 3))

figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
for axis, (name, means) in zip(axes, found.items(), strict=True):
    axis.hist(means, bins=torch.linspace(-1.1, 1.1, 12).tolist(), edgecolor="white")
    axis.axhline(132 / 11, color="black", lw=1, label="the data: all greys alike")
    axis.set(title=f"{name}: deviation {means.std():.2f} of {greys.std():.2f}", xlabel="brightness of a sample")
axes[0].set_ylabel("samples")
_ = axes[1].legend()
assert found["Stable Diffusion's"].std() < 0.65 * greys.std()
assert found["with zero terminal SNR"].std() > 0.9 * greys.std()

# %% [markdown]
# `zero_terminal_snr=True` shifts the schedule until $\alpha_1 = 0$, and brightness is free again. It has a price: at $t = 1$ the noise is
# all there is, and a network that predicts it says nothing about $x_0 = (x_t - \sigma_t \varepsilon)/\alpha_t$. The library refuses that
# combination where the denoiser is made, and names what does work.

# %%
try:
    Denoiser(MLP(), ScaledLinear(zero_terminal_snr=True), Epsilon())
    raise AssertionError("an epsilon-predictor was accepted at alpha = 0")
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# ## What to try
# * `Linear(100)` has its betas scaled by ten. What would $\alpha_1$ be without that? `Linear(100, beta_end=0.002)` shows it.
# * The trap by brightness needs many pixels. Find how small a picture must be for Stable Diffusion's schedule to be harmless.
# * `Flow(shift=3.0)` is what large pictures are trained with. Draw its log SNR, and say in terms of pixels why.
# * On the command line: `python train.py schedule=scaled_linear schedule.zero_terminal_snr=true parameterization=v`.
