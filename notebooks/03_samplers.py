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
# # 3. Samplers: trajectories, order, eta
# A sampler walks from $x_1$, noise, to $x_0$, a sample. At each time of its *grid* it asks the denoiser for $\hat x_0$ and makes a step. To
# see the sampler and nothing else, every model of this chapter is exact: that of a Gaussian mixture, in closed form.
#
# Two processes share the marginals $p_t$ of chapter 1. One is a differential equation, the *probability flow*, without any noise. The other
# forgets as it goes, and takes fresh noise for what it has forgotten. Both arrive at the same distribution, each in its own way.

# %%
from math import log

import matplotlib.pyplot as plt
import torch

from diffusion.generate import Asked
from diffusion.grids import LogSNR, Trailing
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, DDPM, DPMPP2M, RK45, DPMSolver, Heun, UniPC, last
from diffusion.schedules import VE, Cosine

F64 = {"dtype": torch.float64}
torch.manual_seed(0)
line = GaussianMixture(torch.tensor([[-1.2], [0.2], [1.0]]), torch.full((3,), 0.05), torch.tensor([0.3, 0.5, 0.2]), Cosine())
start, t, x = torch.linspace(-2, 2, 17, **F64)[:, None], torch.linspace(0.005, 1, 200, **F64), torch.linspace(-2.5, 2.5, 300, **F64)
density = torch.stack([line.log_prob(x[:, None], at).exp() for at in t], 1)
figure, axes = plt.subplots(1, 2, figsize=(13, 4), sharey=True, layout="constrained")
for axis, (sampler, title) in zip(axes, [(DDIM(), "the flow: no two paths cross"), (DDPM(), "DDPM: paths wander")], strict=True):
    times = Trailing(200)(line.schedule)
    path = torch.stack([start, *(state.x for state in sampler(line, start, times))])
    axis.imshow(density.clamp(max=1.5), origin="lower", aspect="auto", extent=(0, 1, -2.5, 2.5), cmap="Greys")
    axis.plot(times, path[:, :, 0], lw=1)
    axis.set(title=title, xlabel="t (sampling goes from right to left)", ylabel="x_t")
flow = torch.stack([state.x for state in DDIM()(line, start, times)])[:, :, 0]
assert (flow.diff(dim=1) > 0).all()  # on a line the order of the paths never changes

# %% [markdown]
# The flow is a function: the same noise gives the same sample, neighbours stay neighbours, and noise can be interpolated. Followed to the
# end on a *finite* data set it can only end on one of the data (chapter 7).
#
# ## Order
# One step of Euler's method makes an error of $h^2$, so that $n$ of them leave $1/n$: it is of first order. A method of order $k$ leaves
# $n^{-k}$, a line of slope $-k$ on logarithmic axes. It gets there by asking twice in a step (Heun) or by remembering what it was
# told before (DPM-Solver++ 2M, UniPC). What costs time is a call of the network, so the calls are what is counted.
#
# The grid is even in $\log(\sigma/\alpha)$, and the truth is an adaptive solver's at a tolerance of $10^{-11}$. Compared is $x$ before the
# last step, the one from $\sigma = 0.05$ to 0, which is of first order for any method.

# %%
low, high = 0.05, 100.0
schedule = VE(sigma_min=0.01, sigma_max=1000.0)
plane = GaussianMixture(torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.0]]), torch.tensor([0.3, 0.5, 0.4]), schedule=schedule)
noise = high * torch.randn(64, 2, **F64)
truth = next(iter(RK45(1e-11, 1e-11)(plane, noise, LogSNR(2, sigma_min=low, sigma_max=high)(schedule)))).x
methods = {
    "Euler (DDIM)": (DDIM(), 1),
    "Heun": (Heun(), 2),
    "DPM++ 2M": (DPMPP2M(), 2),
    "DPM-Solver 3": (DPMSolver(3), 3),
    "UniPC 2": (UniPC(), 3),
}
figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
for name, (method, order) in methods.items():
    calls, errors = [], []
    for steps in (12, 24, 48, 96, 192):
        asked, times = Asked(plane), LogSNR(steps + 1, sigma_min=low, sigma_max=high)(schedule)
        states = [(state.x, asked.nfe) for state in method(asked, noise, times)]
        errors.append((states[-2][0] - truth).square().mean().sqrt().item())
        calls.append(states[-2][1])
    slope = log(errors[-2] / errors[-1]) / log(calls[-1] / calls[-2])
    axis.loglog(calls, errors, "o-", label=f"{name}: slope {slope:.2f}, order {order}")
    assert abs(slope - order) < 0.35, (name, slope)
axis.set(title="An order pays when there are steps enough for it", xlabel="calls of the denoiser", ylabel="error of x")
axis.legend()

# %% [markdown]
# Two remarks that tables of samplers forget. With ten calls the lines are still bent, and the order of a method says little there. And
# these are errors of one trajectory: a picture may be *another* good picture. Fréchet distances, for which only the distribution
# counts, are a table of their own (`python -m diffusion.evaluate ckpt=exact dataset=digits sweep=samplers`).
#
# ## Eta
# DDIM's $\eta$ says how much fresh noise a step takes: $\eta = 0$ is the flow, $\eta = 1$ is DDPM's posterior. Noise costs steps, since
# each draw is made from a posterior that treats the guess $\hat x_0$ as if it were certain, which makes it too narrow. Here is one of
# eight spots, with the circle that holds half of the data.

# %%
angle = torch.arange(8) * torch.pi / 4
ring = GaussianMixture(2 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.1), schedule=Cosine())
half = 0.1 * (2 * log(2)) ** 0.5  # the radius that holds half of a Gaussian in the plane
counts, widths = (10, 20, 40, 80, 160), {}
figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
for axis, eta in zip(axes, (0.0, 0.5, 1.0), strict=False):
    ends = [last(DDIM(eta)(ring, torch.randn(4000, 2, **F64), Trailing(steps)(ring.schedule))).x for steps in counts]
    away = [(x[:, None] - ring.means).square().sum(2).amin(1).sqrt() for x in ends]
    widths[eta] = [each.median().item() / half for each in away]
    axis.scatter(*ends[1].T, s=2)
    axis.add_patch(plt.Circle((2, 0), half, fill=False, lw=2))
    inside = (away[1] < half).double().mean()
    axis.set(title=f"eta = {eta}, 20 steps: {inside:.0%} inside", xlim=(1.6, 2.4), ylim=(-0.4, 0.4), aspect="equal")
    axes[-1].semilogx(counts, widths[eta], "o-", label=f"eta = {eta}")
axes[-1].axhline(1, color="black", ls=":")
axes[-1].set(title="More noise, more steps", ylabel="width of a spot over the true one", xlabel="steps")
axes[-1].legend()
assert all(noisy < still for noisy, still in zip(widths[1.0][1:], widths[0.0][1:], strict=True))

# %% [markdown]
# Why then would anybody take noise? Because what is forgotten may be an *error*. Start the walk at a wrong place, as a run does that
# begins its grid at a time where there is signal left but feeds it pure noise (the *leading* grid). Here every $x_1$ is shifted by one.
# The flow carries the mistake to the end, since it is a function of $x_1$; with $\eta = 1$ it is gone on arrival.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), sharey=True, layout="constrained")
shares = {}
for axis, eta in zip(axes, (0.0, 0.5, 1.0), strict=True):
    wrong = torch.randn(4000, 1, **F64) + 1.0
    x = last(DDIM(eta)(line, wrong, Trailing(200)(line.schedule))).x
    nearest = (x - line.means[:, 0]).abs().argmin(1)
    shares[eta] = nearest.bincount(minlength=3) / len(x)
    axis.bar(["-1.2", "0.2", "1.0"], shares[eta], label="samples")
    axis.hlines(line.weights, [-0.45, 0.55, 1.55], [0.45, 1.45, 2.45], color="black", label="the data's weights")
    off = (shares[eta] - line.weights).abs().sum().item() / 2
    axis.set(title=f"eta = {eta}: {off:.0%} of the samples at a wrong bell", xlabel="bell at")
axes[2].legend(loc="upper right")
assert (shares[0.0] - line.weights).abs().sum() > 0.5
assert (shares[1.0] - line.weights).abs().sum() < 0.1

# %% [markdown]
# A trained network is wrong a little at every step, so both effects meet: with few steps the flow is better, with many a little noise often
# is. EDM's `s_churn` and the ancestral and SDE samplers are other ways to have some.
#
# ## What to try
# * Give `UniPC(order=3)`, `DEIS()` or `PNDM()` to the plot of orders. Which keep their order if the grid is `Trailing` instead of even in
#   log SNR?
# * How large may $\eta$ be? Try 1.2 on the ring, and read `diffusion.posterior.step` to see what breaks.
# * `DDIMInversion` walks the flow the other way. Take a sample to noise and back with 10, 100 and 1000 steps.
# * `python sample.py ckpt=runs/NAME sampler=heun grid=karras grid.steps=20 trajectory=true` draws a trained model's path.
