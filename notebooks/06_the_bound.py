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
# # 6. The bound, term by term
# Diffusion models were born as latent-variable models: $x_1, \dots, x_T$ are latents, and $-\log p(x_0)$ is bounded by a sum (DDPM eq. 5)
#
# $$-\log p(x_0) \le \underbrace{\mathrm{KL}(q(x_T|x_0)\,\|\,\mathcal N(0, I))}_{L_T}
#   + \sum_{t=2}^{T} \underbrace{\mathrm{KL}(q(x_{t-1}|x_t, x_0)\,\|\,p_\theta(x_{t-1}|x_t))}_{L_{t-1}}
#   \underbrace{-\log p_\theta(x_0|x_1)}_{L_0} .$$
#
# Each is a number in bits per dimension, and can be looked at. The data are scikit-learn's digits as vectors of 64 pixels, so that a
# perceptron will do, and $T = 100$.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from diffusion.denoiser import Denoiser
from diffusion.guidance import Clip
from diffusion.likelihood import bits_per_dimension, dequantised, flow_log_likelihood, variational_bound
from diffusion.networks import MLP
from diffusion.objectives import Hybrid
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Epsilon
from diffusion.samplers import RK45
from diffusion.schedules import Cosine, Linear
from diffusion.times import Stratified
from diffusion.training.ema import EMA

torch.manual_seed(0)
levels = (torch.from_numpy(load_digits().images) * 255 / 16).round().flatten(1)
images = (levels / 127.5 - 1).float()[torch.randperm(len(levels))]
train, test = images[300:], images[:300]

# %% [markdown]
# ## A model with two halves
# The mean of $p_\theta(x_{t-1}|x_t)$ comes from the predicted noise. Its variance lies between two known values, that of $q$ with $x_0$
# known (`fixed_small`, $\tilde\beta_t$) and without (`fixed_large`, $\beta_t$). Nichol & Dhariwal let the network say a fraction between
# their logarithms, trained by the bound, while the mean is trained by the plain squared error: `Hybrid`.

# %%
schedule = Cosine(100)
denoiser = Denoiser(MLP(64, 128, width=192, depth=2), schedule, Epsilon(), learned_variance=True)
average, objective, times = EMA(0.99).start(denoiser), Hybrid(), Stratified()
optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
cooling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=1000)
for _ in range(1000):
    x0 = train[torch.randint(len(train), (128,))]
    loss = objective(denoiser, x0, times(128, schedule).t, torch.randn_like(x0))["loss"].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    cooling.step()
    average.update(denoiser)

# %%
found, x0 = {}, test[:200]
clipped = Clip(denoiser)  # no guess is blacker than black
with average.applied(denoiser):
    for name, model, variance in (
        ("learned", clipped, None),
        ("fixed_small", clipped, "fixed_small"),
        ("fixed_large", clipped, "fixed_large"),
        ("learned, not clipped", denoiser, None),
    ):
        torch.manual_seed(1)  # the same noise for all
        found[name] = variational_bound(model, x0, fixed=variance)
learned = found["learned"]
torch.testing.assert_close(learned.bits, learned.terms.sum(1) + learned.prior)

figure, axes = plt.subplots(1, 3, figsize=(17, 4.2), layout="constrained")
steps = torch.arange(1, 101)
for name, bound in found.items():
    style = dict(ls=":", color="black") if bound is found["learned, not clipped"] else {}
    axes[0].semilogy(steps, bound.terms.mean(0), label=f"{name}: {bound.bits.mean():.2f} bits in all", **style)
    axes[1].plot(steps, bound.terms.mean(0).cumsum(0), label=name, **style)
axes[0].set(title="The terms: a few steps near the data hold nearly all", xlabel="t (L_0 at t = 1)", ylabel="bits per dimension")
axes[1].set(title="Their sum from t = 1 on", xlabel="t", ylabel="bits per dimension")
axes[2].plot(steps, learned.fraction)
axes[2].set(title="What was learned: the variance's fraction", xlabel="t", ylabel="0: fixed_small, 1: fixed_large")
for axis in axes[:2]:
    axis.legend()
print(f"L_T = {learned.prior.mean():.1e} bits, L_0 = {learned.terms[:, 0].mean():.2f} bits")
assert learned.bits.mean() < min(found[name].bits.mean() for name in ("fixed_small", "fixed_large"))
assert learned.prior.mean() < 0.01
assert found["learned, not clipped"].terms[:, -1].mean() > 0.1 > learned.terms[:, -1].mean()

# %% [markdown]
# What to see in it:
#
# * **The prior term is nothing**: $x_T$ is noise, by the schedule's choice. If `L_T` is not small the schedule is wrong (chapter 1).
# * **Nearly all bits are near the data.** Far from it the squared error is large and its weight small. An importance sampling
#   of $t$ (`times=importance`) follows from that, and that the best likelihood is not the best picture.
# * **The variance matters there too, and only there.** Elsewhere the two choices are nearly one number, so are the terms, and the fraction
#   drifts (nothing keeps it between 0 and 1).
# * **The dotted end is a trap.** At $t = T$ the guess is $\hat x_0 = (x_T - \sigma \hat\varepsilon)/\alpha$ with $1/\alpha \approx 2000$:
#   the least error of $\hat\varepsilon$ is a guess far outside of the pictures, and one term of a hundred spoils the
#   sum. Clipping knows that pixels end at $\pm 1$. A number of bits must say whether it was done (`metric=nll_vlb` does).
#
# The numbers are small for a reason that has nothing to do with the model. Of 256 levels these digits use 17: who knows that needs at most
# $\log_2 17 = 4.1$ bits. Bits per dimension compare models on the *same* data in the *same* levels, and nothing else.
#
# ## The other likelihood: an equation, not a bound
# The probability flow is a change of variables, so its density is exact: $\log p(x) = \log p_1(x_1) + \int \operatorname{div} f\, dt$. Does
# it come out right? On a mixture both sides are known, if the divergence is (in one dimension its random estimate has no error).

# %%
F64 = {"dtype": torch.float64}
mixture = GaussianMixture(torch.tensor([[-1.0], [0.4]]), torch.tensor([0.2, 0.4]), torch.tensor([0.3, 0.7]), Linear())
x = torch.linspace(-2.0, 2.0, 81, **F64)[:, None]
flow = flow_log_likelihood(mixture, x, solver=RK45(1e-8, 1e-8), t_min=1e-3)
first = torch.tensor(1e-3, **F64)
alpha = mixture.schedule(first)[0]
truth = mixture.log_prob(alpha * x, first) + alpha.log()  # x enters as alpha x
figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
axis.plot(x, truth.exp(), lw=5, alpha=0.4, label="the mixture's density")
axis.plot(x, flow.exp(), "k--", label="by the flow")
axis.set(title=f"The flow's density is the true one, to {(flow - truth).abs().max():.0e} nats", xlabel="x", ylabel="p(x)")
axis.legend()
assert (flow - truth).abs().max() < 2e-3

# %% [markdown]
# (What is left is that $x_1$ is not quite $\mathcal N(0, 1)$: the flow's $L_T$.)
#
# Of the digits, pixels are first spread evenly over their bins, since a density of discrete values means nothing (without that a model
# could raise it without end). The flow's number of the same network:

# %%
sample = test[:60]
with average.applied(denoiser):
    torch.manual_seed(2)
    log_p = flow_log_likelihood(denoiser, dequantised(sample, 1 / 127.5, torch.randn_like), solver=RK45(1e-3, 1e-3))
ode = bits_per_dimension(log_p, 64, 1 / 127.5)
error = (ode.std() / len(ode) ** 0.5).item()
print(f"by the flow {ode.mean():.2f} +- {error:.2f}, by the bound {learned.bits[:60].mean():.2f} bits per dimension")

figure, axis = plt.subplots(figsize=(5.5, 4.8), layout="constrained")
axis.plot(learned.bits[:60], ode, "o")
both = torch.stack([learned.bits[:60], ode.to(learned.bits)])
axis.plot([both.min(), both.max()], [both.min(), both.max()], "k:")
correlation = torch.corrcoef(both)[0, 1].item()
axis.set(title=f"Which digits are hard, both agree: r = {correlation:.2f}", xlabel="bits by the bound", ylabel="bits by the flow")
assert correlation > 0.4

# %% [markdown]
# They are two models with one network: the bound is of a chain of 100 Gaussian steps with learned variances and clipped guesses, the
# flow's of a differential equation without either. Neither bounds the other.
#
# ## What to try
# * Take `Cosine(25)` and `Cosine(400)` instead of 100 steps. Where do the bits of the bound go?
# * Train with `V()` instead of `Epsilon()`. Does the dotted end stay?
# * Is $L_0$ of a perfect network 0? Compute it for `EmpiricalDistribution(train)`, on `train` and on `test`.
# * `python -m diffusion.evaluate ckpt=runs/NAME metric=[nll_vlb,nll_ode]` measures both of a run, with errors, and draws the terms.
