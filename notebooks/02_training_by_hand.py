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
# # 2. Training by hand
# Everything that a training needs is in the library's lower floors: no Lightning, no configuration, one loop. The data are points of a
# checkerboard, because a plane can be looked at and because nobody can say afterwards that the model was only given an easy density.

# %%
import matplotlib.pyplot as plt
import torch

from diffusion.denoiser import Denoiser
from diffusion.grids import Trailing
from diffusion.networks import MLP
from diffusion.objectives import Simple
from diffusion.oracles import EmpiricalDistribution
from diffusion.parameterization import V
from diffusion.samplers import Heun, last
from diffusion.schedules import Cosine
from diffusion.times import Stratified
from diffusion.training.ema import EMA

torch.manual_seed(0)


def checkerboard(n):
    """n points of the 8 dark squares of a board of 4 x 4 fields between -2 and 2, at unit deviation."""
    x = 4 * torch.rand(n, 2) - 2
    row, column = x.floor().long().T
    x[:, 0] = torch.where((row + column) % 2 == 0, x[:, 0], x[:, 0] - x[:, 0].floor() * 2 - 1)  # moved into a dark field
    return x / 1.16


def in_dark(x):
    """Whether each point lies in a dark square."""
    fields = (x * 1.16).floor().long()
    return ((fields.sum(1) % 2) == 0) & ((x * 1.16).abs() < 2).all(1)


assert in_dark(checkerboard(10_000)).all()

# %% [markdown]
# ## Four objects and a loop
# A **network** is any torch module that is called as `network(x_t, label, cond)`. A **denoiser** is a network with a schedule and with what
# its output means; here it predicts $v = \alpha \varepsilon - \sigma x_0$. An **objective** says a loss for each sample, **times** draws
# the $t$ of a batch. (`Stratified` spreads them evenly over $(0, 1]$, which makes the mean loss of a batch less noisy.) The **average** of
# the weights is what one samples from.

# %%
denoiser = Denoiser(MLP(in_channels=2, out_channels=2, width=96, depth=3), Cosine(), V())
objective, times, average = Simple(), Stratified(), EMA(0.995).start(denoiser)
optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3, weight_decay=0)
steps, batch, losses, seen = 1400, 512, [], {}
cooling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)


@torch.no_grad()
def samples(n=1500):
    """n points by the averaged weights, of the same noise each time."""
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    with average.applied(denoiser):
        return last(Heun()(denoiser, noise, Trailing(12)(denoiser.schedule))).x


for step in range(steps):
    if step in (0, 100, 400):
        seen[step] = samples()
    x0 = checkerboard(batch)
    t, weight = times(batch, denoiser.schedule)
    loss = (weight * objective(denoiser, x0, t, torch.randn_like(x0))["loss"]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    cooling.step()
    average.update(denoiser)
    losses.append(loss.item())
seen[steps] = samples()

# %%
figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), sharex=True, sharey=True, layout="constrained")
for axis, (step, x) in zip(axes, seen.items(), strict=False):
    axis.scatter(*x.T, s=1)
    axis.set_title(f"step {step}: {in_dark(x).float().mean():.0%} in dark fields")
axes[-1].scatter(*checkerboard(1500).T, s=1, color="black")
axes[-1].set(title="the data", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
assert in_dark(seen[steps]).float().mean() > 0.85 > 0.7 > in_dark(seen[100]).float().mean()

# %% [markdown]
# ## What the loss does not say
# The samples became sharp long after the loss had stopped falling. Look at it twice: along the training, and at the end against $t$.
# Nobody can reach 0: from $x_t$ alone the noise is not known. What *can* be reached is the loss of the exact denoiser, and we can have
# that: of a fine lattice of points `EmpiricalDistribution` is $E[x_0 \mid x_t]$ as the checkerboard itself has it.

# %%
side = ((torch.arange(160) + 0.5) / 40 - 2) / 1.16
board = torch.cartesian_prod(side, side)
board = board[in_dark(board)]  # 12,800 points
exact = EmpiricalDistribution(board, denoiser.schedule)
grid = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
lowest, reached = [], []
with torch.no_grad(), average.applied(denoiser):
    x0 = board[::7]
    eps = torch.randn_like(x0)
    eps = eps / eps.square().mean().sqrt()  # exactly of variance 1: fewer draws will do
    for t in grid:
        alpha, sigma = (level.item() for level in denoiser.schedule(t))
        best = exact(alpha * x0 + sigma * eps, t)
        lowest.append(((alpha * best.eps - sigma * best.x0 - alpha * eps + sigma * x0) ** 2).mean().item())
        reached.append(objective(denoiser, x0, t.expand(len(x0)), eps)["loss"].mean().item())

figure, axes = plt.subplots(1, 2, figsize=(13, 3.8), layout="constrained")
smooth = torch.tensor(losses).unfold(0, 50, 50).mean(1)
axes[0].plot(torch.arange(len(smooth)) * 50 + 25, smooth)
axes[0].axhline(sum(lowest) / len(lowest), color="black", ls=":", label="the exact denoiser's, known to 2 %")
axes[0].set(title="Most of the loss is no fault of the model", xlabel="step", ylabel="loss, mean of 50 steps", ylim=(0.85, 1.05))
axes[0].legend()
axes[1].bar(grid, torch.tensor(reached) - torch.tensor(lowest), width=0.05)
axes[1].set(title="What could still be gained is near the data", xlabel="t", ylabel="the model's loss less the exact one's")
excess = sum(reached) / sum(lowest) - 1
print(f"the model's loss is {excess:.1%} above the least that is possible")
assert 0 < excess < 0.05

# %% [markdown]
# So the last per cent is the picture, and the noise of the curve hides it. That is why this project measures distances of samples, and
# why a loss is compared with another loss only at the same schedule, parameterization and distribution of $t$.
#
# ## What the network has learnt
# A field: at each $x_t$ the guess $\hat x_0 = E[x_0 \mid x_t]$. In high noise the guess is the middle of the board for all. Then the board
# appears, and near the end each point is sent to its own field.

# %%
line = torch.linspace(-2, 2, 15)
x = torch.cartesian_prod(line, line)
figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharex=True, sharey=True, layout="constrained")
with torch.no_grad(), average.applied(denoiser):
    for axis, t in zip(axes, (0.9, 0.35, 0.12), strict=True):
        to = denoiser(x, torch.tensor(t, dtype=torch.float64)).x0
        axis.scatter(*checkerboard(3000).T, s=1, color="lightgrey")
        axis.quiver(*x.T, *(to - x).T, angles="xy", scale_units="xy", scale=1, width=0.003)
        axis.set_title(f"t = {t}: arrows from x_t to the guessed x_0")

# %% [markdown]
# ## What to try
# * Replace `V()` by `Epsilon()` or `X0()`, and `Cosine()` by `Flow()` with `Velocity()`. Nothing else changes. Which is best at 100 steps?
# * Sample with the last weights instead of their average (leave `average.applied` out), with a constant learning rate.
# * `Hybrid()` instead of `Simple()` needs `out_channels=4` and `learned_variance=True`: chapter 6 says what for.
# * The same with all that a long run wants: `python train.py dataset=two_moons`.
