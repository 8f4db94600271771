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
# # 4. Guidance: scale against diversity
# A conditional model knows $p(x \mid c)$. Guidance asks it for something else: what is *more* of class $c$ than the others. Classifier-free
# guidance takes two answers of one model, with and without the condition, and goes beyond the first (Ho & Salimans 2207.12598):
#
# $$\hat\varepsilon = \hat\varepsilon(x_t) + s\,\big(\hat\varepsilon(x_t, c) - \hat\varepsilon(x_t)\big).$$
#
# Here $s = 1$ is the conditional model, 0 the unconditional one (the papers' $w$ is $s - 1$). As $\varepsilon$ is the score but for a
# factor, this is the score of $p_t(x)\, p_t(c \mid x)^s$ at each time *by itself*. Our classes overlap, and the denoiser is exact, so that
# everything seen is guidance's doing and none the network's.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch

from diffusion.generate import Asked
from diffusion.grids import Trailing
from diffusion.guidance import CFGPlusPlus, ClassifierFree, Interval
from diffusion.metrics import Moments, frechet_distance
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, last
from diffusion.schedules import Cosine

F64 = {"dtype": torch.float64}
torch.manual_seed(0)
means = torch.tensor([[-1.0, -0.2], [-0.2, 1.0], [0.2, -0.5], [1.1, -0.3], [0.3, 0.3], [1.0, 0.9]])
classes = torch.tensor([0, 0, 1, 1, 2, 2])
data = GaussianMixture(means, torch.full((6,), 0.3), schedule=Cosine(), classes=classes)
colours, n, grid = ["tab:blue", "tab:orange", "tab:green"], 2000, Trailing(40)
cond = torch.arange(3 * n) % 3
noise = torch.randn(3 * n, 2, **F64)


def sampled(guided):
    """The same noise, the same classes, by another guidance."""
    return last(DDIM()(Asked(guided, cond), noise, grid(data.schedule))).x


def sure(x):
    """The mean probability p(c | x) of the class that was asked for, in the data's own density."""
    zero = torch.full((), 1e-4, **F64)
    joint = torch.stack([data.log_prob(x, zero, torch.full((len(x),), c)) for c in range(3)], 1)
    return joint.softmax(1).gather(1, cond[:, None]).mean().item()


def spread(x):
    """The deviation within a class, the mean over classes."""
    return torch.stack([x[cond == c].var(0).sum().sqrt() for c in range(3)]).mean().item()


def draw(axis, x, title):
    for c in range(3):
        axis.scatter(*x[cond == c].T, s=1, alpha=0.5, color=colours[c])
    axis.set(title=f"{title}\nspread {spread(x):.2f}, sure of its class {sure(x):.0%}", xlim=(-2.6, 2.6), ylim=(-2.2, 2.4))


figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), sharex=True, sharey=True, layout="constrained")
by_scale = {scale: sampled(ClassifierFree(data, scale)) for scale in (1.0, 2.0, 4.0, 8.0)}
for axis, (scale, x) in zip(axes, by_scale.items(), strict=True):
    draw(axis, x, f"scale {scale:.0f}")
spreads, sures = ([measure(x) for x in by_scale.values()] for measure in (spread, sure))
assert sorted(spreads, reverse=True) == spreads
assert sorted(sures) == sures
assert sures[-1] > 0.97

# %% [markdown]
# Three things at once. The samples leave the places where classes overlap, which is what a person means by "more like a 7". They lose their
# diversity: of each class one end is left. And at large scales they leave the *data*: there are samples where no class has any.
#
# ## It is not the density that it seems to be
# The formula suggests samples of $p(x)\, p(c \mid x)^s$. They are not: noising a tilted density and tilting noised densities are different
# things (Bradley & Nakkiran 2408.09000). In a plane the tilted density can be drawn exactly, by weights: it stays with the data.

# %%
scale, one = 4.0, 0
pool = data.sample(200_000)
zero = torch.full((), 1e-4, **F64)
log_odds = data.log_prob(pool, zero, torch.full((len(pool),), one)) - data.log_prob(pool, zero)  # log p(c | x) but for a constant
tilted = pool[torch.multinomial((scale * log_odds).exp(), n)]
guided = by_scale[scale][cond == one]
figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True, sharey=True, layout="constrained")
for axis, x, title in ((axes[0], tilted, "p(x) p(c | x)^4 itself"), (axes[1], guided, "what guidance of scale 4 samples")):
    axis.scatter(*pool[:6000].T, s=1, color="lightgrey")
    axis.scatter(*x.T, s=2, color=colours[one])
    likely = data.log_prob(x, zero, torch.full((len(x),), one)).mean()
    axis.set_title(f"{title}: mean log p(x | c) = {likely:.2f}")
assert likely < data.log_prob(tilted, zero, torch.full((n,), one)).mean() - 0.5

# %% [markdown]
# ## Where in time does it act
# In high noise guidance pushes whole modes about, since the classes' mean positions are all that is known there; near the data
# it does little more than choose a side. So `Interval` (Kynkäänniemi et al. 2404.07724) guides only between two noise levels
# $\sigma/\alpha$. `CFGPlusPlus` (2406.08070) noises the guided $\hat x_0$ with the *unguided* $\hat\varepsilon$, and its scale is between 0
# and 1. Stages nest: each is a denoiser around another.

# %%
strong = partial(ClassifierFree, scale=4.0)
ways = {
    "scale 4 everywhere": strong(data),
    "scale 4 where 0.15 < sigma/alpha < 1": Interval(strong(data), low=0.15, high=1.0),
    "scale 4 where sigma/alpha > 1": Interval(strong(data), low=1.0),
    "CFG++ of scale 0.6": CFGPlusPlus(data, scale=0.6, grid=grid),
}
figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), sharex=True, sharey=True, layout="constrained")
found = {name: sampled(guided) for name, guided in ways.items()}
for axis, (name, x) in zip(axes, found.items(), strict=True):
    draw(axis, x, name)

# %% [markdown]
# A scale of one guidance says nothing about the same scale of another. What can be compared is what is paid, the Fréchet distance to the
# samples of $p(x \mid c)$, for what is bought, sureness. Down and to the left is better.

# %%
truth, scales = data.sample(3 * n, cond), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)


def moments(x):
    found = Moments(2)
    found.update(x)
    return found


def distance(x):
    """The mean over classes of the Fréchet distance to the data of the class, in the plane itself."""
    return sum(frechet_distance(moments(truth[cond == c]), moments(x[cond == c])) for c in range(3)) / 3


families = {
    "everywhere": [ClassifierFree(data, s) for s in scales],
    "where 0.15 < sigma/alpha < 1": [Interval(ClassifierFree(data, s), low=0.15, high=1.0) for s in scales],
    "where sigma/alpha > 1": [Interval(ClassifierFree(data, s), low=1.0) for s in scales],
    "CFG++": [CFGPlusPlus(data, scale=s, grid=grid) for s in (0.1, 0.12, 0.15, 0.18, 0.2, 0.25, 0.3)],
}
figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
price = {}
for name, members in families.items():
    made = [sampled(guided) for guided in members]
    bought, paid = [sure(x) for x in made], [distance(x) for x in made]
    axis.semilogx([1 - sureness for sureness in bought], paid, "o-", label=name)
    price[name] = min(cost for sureness, cost in zip(bought, paid, strict=True) if sureness > 0.99)
axis.set(title="The price of being sure is lowest at medium noise", xlabel="doubt left, 1 - p(c | x)", ylabel="distance to p(x | c)")
axis.legend()
assert price["where 0.15 < sigma/alpha < 1"] < price["everywhere"] < price["where sigma/alpha > 1"]

# %% [markdown]
# With an exact model scale 1 has the least distance, of course. That the best FID of trained models is often at a scale above 1 says
# something about *them*: guidance also mends a network that has not quite told the classes apart.

# %% [markdown]
# ## What to try
# * `guidance=[cfg,clip]` on the command line is `Clip(ClassifierFree(...))`. Put `Clip(..., -1.5, 1.5)` outside and inside. Which helps?
# * Guide *away* from a class: `ClassifierFree(data, 3.0, negative=torch.tensor(1))`.
# * `Classifier` needs no null class, only gradients of $\log p(c \mid x_t)$. With the exact one, scale $w$ is the same as $s = 1 + w$.
# * `python -m diffusion.evaluate ckpt=runs/NAME sweep=guidance metric=[fd,precision_recall]` draws such a curve of a trained model.
