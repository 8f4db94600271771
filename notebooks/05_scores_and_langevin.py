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
# # 5. Score matching and Langevin dynamics
# The other road to diffusion models begins with the *score*, $\nabla \log p(x)$. It needs no normalising constant, and who has it can
# sample: Langevin dynamics walks uphill with noise,
#
# $$x \leftarrow x + \tfrac a2 \nabla \log p(x) + \sqrt a\, z .$$
#
# Two things stand in the way. The score of the data is not known, and the walk does not get about. One idea mends both: noise, at many
# levels.

# %%
import matplotlib.pyplot as plt
import torch

from diffusion.denoiser import Denoiser
from diffusion.generate import Asked
from diffusion.grids import Exponential
from diffusion.networks import MLP
from diffusion.objectives import DSM
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import ScaledScore
from diffusion.samplers import DDPM, Langevin, PredictorCorrector, last
from diffusion.schedules import VE
from diffusion.times import Stratified
from diffusion.training.ema import EMA

torch.manual_seed(0)
levels = VE(10, sigma_min=0.1, sigma_max=10.0)
data = GaussianMixture(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), torch.full((2,), 0.6), torch.tensor([0.2, 0.8]), levels)

# %% [markdown]
# ## Denoising score matching
# Noised data $\tilde x = x + \sigma \varepsilon$ have a score too, and although $\nabla \log p_\sigma(\tilde x)$ is unknown, that of
# $p(\tilde x \mid x)$ is simply $-\varepsilon / \sigma$. Its mean over all $x$ that could have become $\tilde x$ is the score of
# $p_\sigma$, and the mean is what least squares finds (Vincent 2011):
#
# $$\tfrac12\, \sigma^2 \left\| s_\theta(\tilde x, \sigma) + \varepsilon / \sigma \right\|^2 \quad\text{has its minimum at}\quad
# s_\theta = \nabla \log p_\sigma .$$
#
# So one network learns the score at every level of a `VE` schedule ($\alpha = 1$). The data are two clouds of weights 1/5 and 4/5.

# %%
denoiser = Denoiser(MLP(2, 2, width=64, depth=2), levels, ScaledScore())
average, objective, times = EMA(0.99).start(denoiser), DSM(), Stratified()
optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
cooling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=1200)
for _ in range(1200):
    x0 = data.sample(512).float()
    loss = objective(denoiser, x0, times(512, levels).t, torch.randn_like(x0))["loss"].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    cooling.step()
    average.update(denoiser)


def score(x, t):
    """The network's score: -eps/sigma."""
    with torch.no_grad(), average.applied(denoiser):
        return -denoiser(x, t).eps / levels(t)[1].item()


line = torch.linspace(-6, 6, 17)
mesh = torch.cartesian_prod(line, line)
figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), sharex=True, sharey=True, layout="constrained")
for axis, step in zip(axes, (2, 7, 10), strict=True):
    t = torch.tensor(step / 10, dtype=torch.float64)
    sigma = levels(t)[1].item()
    axis.scatter(*(data.sample(1500) + sigma * torch.randn(1500, 2)).T, s=1, color="lightgrey")
    for arrows, colour in ((data.score(mesh.double(), t), "black"), (score(mesh, t), "tab:red")):
        axis.quiver(*mesh.T, *(sigma * arrows).T, color=colour, angles="xy", width=0.003, scale=40 if step == 2 else 20)
    x = (data.sample(4000) + sigma * torch.randn(4000, 2)).float()
    error = sigma * (score(x, t) - data.score(x.double(), t)).square().sum(1).mean().sqrt()
    axis.set(title=f"sigma = {sigma:.2f}: error {error:.2f} of a noise of 1.41", xlim=(-6.5, 6.5), ylim=(-6.5, 6.5))
    assert error < 0.35

# %% [markdown]
# Black is the true score, red the network's (both times $\sigma$). At a small level the network is right where there are data and makes
# things up elsewhere: nobody showed it those places. At large levels the data are everywhere, and there is no such place.
#
# ## Langevin, at one level and down the levels
# Each walk starts from points all over the square and makes 1,000 steps with the *exact* score, so that what goes wrong is the walk's
# fault.

# %%
ladder = Exponential(10)(levels)
start = 16 * torch.rand(1500, 2, dtype=torch.float64) - 8
plain = last(Langevin(walk=1000, ratio=0.2)(data, start, ladder[-2:])).x
states = list(Langevin(walk=100, ratio=0.2)(data, start, ladder))
annealed = states[-1].x
with torch.no_grad(), average.applied(denoiser):
    learned = last(Langevin(walk=100, ratio=0.2)(denoiser, start.float(), ladder)).x
figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), sharex=True, sharey=True, layout="constrained")
lower = {}
names = ["the data", "Langevin at sigma = 0.1", "annealed, exact score", "annealed, learned score"]
for axis, name, x in zip(axes, names, [data.sample(1500), plain, annealed, learned], strict=True):
    lower[name] = (x.sum(1) < 0).double().mean().item()
    axis.scatter(*x.T, s=2)
    axis.set(title=f"{name}: {lower[name]:.0%} in the lower cloud", xlim=(-8, 8), ylim=(-8, 8))
assert abs(lower["Langevin at sigma = 0.1"] - 0.2) > 0.2
assert abs(lower["annealed, exact score"] - 0.2) < 0.05 and abs(lower["annealed, learned score"] - 0.2) < 0.08

# %% [markdown]
# The weights are the point. At one small level each walker stays in the basin it began in, so that half of them are in a cloud that
# has a fifth of the data: *the score does not know the weights of modes that are far apart*. Where the noise is large the two
# clouds are one, the walkers share themselves out as they should, and going down slowly keeps it so. Chapter 3's samplers go the
# same way with one step at each level.

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
share = [(state.x.sum(1) < 0).double().mean().item() for state in states]
axis.plot(levels(ladder[:-1])[1], share, "o-", label="annealed Langevin")
axis.axhline(0.2, color="black", ls=":", label="the weight of the lower cloud")
axis.axhline((start.sum(1) < 0).double().mean().item(), color="grey", lw=1, label="at the start")
axis.set(xscale="log", xlabel="sigma, after its 100 steps", ylabel="share with x + y < 0")
axis.set(title="The weights are settled while the clouds still touch")
axis.invert_xaxis()
axis.legend()

# %% [markdown]
# ## Predictor and corrector
# A sampler's step makes an error, and a Langevin step at the new level is a walk *towards the right distribution*, whatever one begins
# with. Song et al. (2011.13456) alternate both. The length of the step follows from the norms of score and noise, which in many
# dimensions hardly vary (in the plane they do, and the rule fails there). So the data have 100 dimensions now. How wide does a cloud come
# out?

# %%
high = torch.tensor([[-0.3], [0.3]]).expand(2, 100)
many = GaussianMixture(high, torch.full((2,), 0.3), data.weights, VE(1000, sigma_min=0.01, sigma_max=10.0))
wide = 10 * torch.randn(300, 100, dtype=torch.float64)


def width(sampler, steps):
    """(calls, the deviation of samples around the nearest cloud over the true one)."""
    asked = Asked(many)
    x = last(sampler(asked, wide, Exponential(steps)(many.schedule))).x
    return asked.nfe, ((x[:, None] - many.means).square().sum(2).amin(1).mean() / 100).sqrt().item() / 0.3


figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
found = {}
for variance, colour in (("fixed_small", "tab:blue"), ("fixed_large", "tab:orange")):
    alone = DDPM(variance)
    for name, sampler in {"alone": alone, "corrected": PredictorCorrector(alone, snr=0.16)}.items():
        found[variance, name] = [width(sampler, steps) for steps in (10, 20, 40, 80)]
        style = dict(marker="o", ls="-") if name == "corrected" else dict(marker="x", ls="--")
        axis.semilogx(*zip(*found[variance, name], strict=True), color=colour, label=f"DDPM({variance}), {name}", **style)
axis.axhline(1, color="black", ls=":")
axis.set(
    title="A corrector brings samples nearer, from either side", xlabel="calls of the denoiser", ylabel="width of a cloud over the true one"
)
axis.legend()
for variance in ("fixed_small", "fixed_large"):
    for (_, alone), (_, corrected) in zip(*(found[variance, name][:3] for name in ("alone", "corrected")), strict=True):
        assert abs(corrected - 1) < abs(alone - 1)

# %% [markdown]
# It costs a call for each correction. After the smaller variance these calls are better spent than on twice as many steps; after the larger
# one they are not. And at the right it stays a little too wide: that is the step of the Langevin walk itself, whose error is not corrected.

# %% [markdown]
# ## What to try
# * Replace `DSM()` by `SSM()`, which does without $\varepsilon$: its loss differs by a constant, its gradients by their noise.
# * Take `VE(10, sigma_max=1.0)`: the clouds never touch. Which share of the walkers is then in the lower one, and why?
# * `Langevin(ratio=...)` is the step over $\sigma^2$. Find the largest at which the widths of the clouds are still right.
# * The identities behind this chapter, each with a number: `twelve_problems.py`. On digits: `python train.py experiment=ncsn_digits`.
