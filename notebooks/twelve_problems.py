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
# # Twelve problems
# The exercises of a lecture on score matching, DDPM and DDIM, answered in numbers instead of algebra. Every density is known, so each
# identity can be watched: exactly in float64, or with a standard error. (`tests/oracle/test_twelve_problems.py` asserts them.)

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffusion.denoiser import Denoiser
from diffusion.grids import Exponential, Linspace
from diffusion.objectives import DSM, SSM, ExactScoreMatching
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Score
from diffusion.posterior import posterior, step
from diffusion.samplers import DDIM, DDPM, Langevin, last
from diffusion.schedules import VE, Cosine, Linear

torch.manual_seed(0)
F64 = {"dtype": torch.float64}
means, stds, weights = torch.tensor([[-1.0, 0.5], [1.0, 1.0], [0.0, -1.5]]), torch.tensor([0.5, 0.3, 0.8]), torch.tensor([0.3, 0.5, 0.2])
schedule, level, n = VE(100), torch.tensor(0.6, **F64), 20_000
mixture = GaussianMixture(means, stds, weights, schedule)
sigma = schedule(level)[1]


def told(name, draws):
    """A mean and its standard error."""
    print(f"{name:46s} {draws.mean():9.5f} +- {draws.std() / len(draws) ** 0.5:.5f}")


# %% [markdown]
# ## 1. Explicit and implicit score matching
# s_theta is an arbitrary function. Explicit score matching needs the true score; the implicit form, with the trace of s_theta's
# derivative, does not, and differs from it by a constant.

# %%
A, B = torch.randn(2, 2, 2, **F64) / 2


def s_theta(x):
    return x @ A + x.tanh() @ B


class Network(nn.Module):
    def forward(self, x, label, cond):
        return s_theta(x * (1 + sigma**2).sqrt())  # the denoiser shows a VE network x / sqrt(1 + sigma^2)


x0, eps, t = mixture.sample(n), torch.randn(n, 2, **F64), level.expand(n)
x = x0 + sigma * eps
truth = mixture.score(x, level)
model = Denoiser(Network(), schedule, Score())


def found(objective):
    """Its loss of each sample as the lecture has it: the objectives are means over the 2 dimensions times lambda = sigma^2."""
    return 2 / sigma**2 * objective(model, x0, t, eps)["loss"].detach()


explicit, implicit = 0.5 * ((s_theta(x) - truth) ** 2).sum(1), found(ExactScoreMatching())
told("1. explicit - implicit - 1/2 |grad log p|^2", explicit - implicit - 0.5 * (truth**2).sum(1))

# %% [markdown]
# ## 2. The trace by random slices
# Sliced score matching estimates the trace by v^T (d s_theta/dx) v.

# %%
told("2. sliced - implicit", found(SSM()) - implicit)

# %% [markdown]
# ## 3. Explicit and denoising score matching
# The target -eps/sigma is known for each sample, and its mean over what could have been noised is the true score.

# %%
told("3. explicit - denoising - constant", explicit - found(DSM()) - 0.5 * (truth**2).sum(1) + 0.5 * ((eps / sigma) ** 2).sum(1))

# %% [markdown]
# ## 4. The closed kernel
# Thirty steps x <- sqrt(1 - beta) x + sqrt(beta) z, against sqrt(abar) and 1 - abar.

# %%
vp = Linear(30, beta_end=0.01)


def noised(x):
    for beta in vp.betas():
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(n, **F64)
    return x


alpha, noise = vp(torch.ones((), **F64))
point = noised(torch.full((n,), 0.7, **F64))
told("4. (x_T - sqrt(abar_T) x_0)/sqrt(1 - abar_T)", (point - 0.7 * alpha) / noise)
told("   its square, less 1", ((point - 0.7 * alpha) / noise) ** 2 - 1)

# %% [markdown]
# ## 5. Unit variance
# Data of variance 1 keep it at every step.

# %%
told("5. x_T^2 - 1, for x_0 = -1 or 1", noised(torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()) ** 2 - 1)

# %% [markdown]
# ## 6. The bound
# A chain of three steps and a Gaussian model of it, whose likelihood is known. The bound lies above it (Jensen's inequality).


# %%
class Short(Cosine):
    def betas(self):
        return torch.tensor([0.2, 0.5, 0.7], **F64)


short, (a, b, v) = Short(3), (0.9, 0.1, 0.3)
betas, path = short.betas(), [0.5 * torch.randn(n, **F64) + 0.2]
for beta in betas:
    path.append((1 - beta).sqrt() * path[-1] + beta.sqrt() * torch.randn(n, **F64))
chain = -Normal(0.0, 1.0).log_prob(path[-1])
for i, beta in enumerate(betas):
    chain += Normal((1 - beta).sqrt() * path[i], beta.sqrt()).log_prob(path[i + 1])
    chain -= Normal(a * path[i + 1] + b, v**0.5).log_prob(path[i])

mean, variance = 0.0, 1.0
for _ in betas:
    mean, variance = a * mean + b, a * a * variance + v
told("6. bound - (-log p(x_0)), which is positive", chain + Normal(mean, variance**0.5).log_prob(path[0]))

# %% [markdown]
# ## 7. Its split
# Into Kullback-Leibler terms, one for each step, and the two ends: the two forms agree on every path.

# %%
knots = [torch.tensor(i / 3, **F64) for i in range(4)]
alpha, noise = short(knots[3])
split = Normal(alpha * path[0], noise).log_prob(path[-1]) - Normal(0.0, 1.0).log_prob(path[-1])
for i in (2, 3):
    mean, small, _ = posterior(path[i], path[0], knots[i], knots[i - 1], short)
    split += Normal(mean, small.sqrt()).log_prob(path[i - 1]) - Normal(a * path[i] + b, v**0.5).log_prob(path[i - 1])
split -= Normal(a * path[1] + b, v**0.5).log_prob(path[0])
print("7. largest difference of the two forms on a path:", (chain - split).abs().max().item())

# %% [markdown]
# ## 8. The posterior
# Bayes' rule on a grid, and the code's Gaussian on top of it.

# %%
line, one = torch.linspace(-2.5, 2.5, 400, **F64), torch.ones(1, **F64)
mean, small, _ = posterior(-0.5 * one, 0.3 * one, knots[2], knots[1], short)
(alpha_s, noise_s), beta = short(knots[1]), betas[1]
bayes = Normal((1 - beta).sqrt() * line, beta.sqrt()).log_prob(-0.5 * one) + Normal(0.3 * alpha_s, noise_s).log_prob(line)
bayes = bayes.exp() / torch.trapezoid(bayes.exp(), line)
plt.plot(line, bayes, lw=5, alpha=0.4, label="Bayes")
plt.plot(line, Normal(mean, small.sqrt()).log_prob(line).exp(), label="posterior()")
plt.xlabel("x_{t-1}")
plt.legend()

# %% [markdown]
# ## 9. The score is -eps/sigma_t
# By autograd of the mixture's density: the factor is sqrt(1 - abar_t), the noise level, not the reverse step's deviation.

# %%
on_vp, spot, x = GaussianMixture(means, stds, weights, vp), torch.tensor(0.5, **F64), torch.randn(5, 2, **F64).requires_grad_()
gradient = torch.autograd.grad(on_vp.log_prob(x, spot).sum(), x)[0]
print("9.", (gradient + on_vp(x.detach(), spot).eps / vp(spot)[1]).abs().max().item())

# %% [markdown]
# ## 10. The marginals of DDIM
# Whatever eta: from x_T, moves with the true x_0 keep the mean at sqrt(abar) x_0 and the variance at 1 - abar.

# %%
for eta in (0.0, 0.5, 1.0):
    x = vp(torch.ones((), **F64))[0] * 0.7 + vp(torch.ones((), **F64))[1] * torch.randn(n, **F64)
    for i in range(30, 15, -1):
        x = step(x, torch.full_like(x, 0.7), torch.tensor(i / 30, **F64), torch.tensor((i - 1) / 30, **F64), vp, eta)
    alpha, noise = vp(spot)
    told(f"10. eta = {eta}: standardised x_15", (x - 0.7 * alpha) / noise)
    told("    its square, less 1", ((x - 0.7 * alpha) / noise) ** 2 - 1)

# %% [markdown]
# ## 11. The theorem
# The Kullback-Leibler term at t is gamma_t |eps - eps_theta|^2 for any eps_theta; the weights gamma_t are found here for three eta.

# %%
for eta in (0.2, 0.5, 1.0):
    gammas = []
    for i in range(2, 31):
        t, s = torch.tensor(i / 30, **F64), torch.tensor((i - 1) / 30, **F64)
        (alpha, noise), x0, eps = vp(t), torch.randn(100, **F64), torch.randn(100, **F64)
        x_t, guess = alpha * x0 + noise * eps, eps + torch.randn(100, **F64)
        moved = [step(x_t, v, t, s, vp, eta, torch.zeros_like) for v in (x0, (x_t - noise * guess) / alpha)]
        deviation = (step(x_t, x0, t, s, vp, eta, torch.ones_like) - moved[0]).mean()
        gammas.append(kl_divergence(Normal(moved[0], deviation), Normal(moved[1], deviation)) / (eps - guess) ** 2)
    gammas = torch.stack(gammas)
    plt.semilogy(range(2, 31), gammas.mean(1), label=f"eta = {eta}, spread over eps_theta {(gammas.std(1) / gammas.mean(1)).max():.0e}")
plt.xlabel("t")
plt.ylabel("gamma_t")
plt.legend()

# %% [markdown]
# ## 12. DDIM at eta = 1 is DDPM
# With the variance beta tilde and the same noise.

# %%
ends = []
for sampler in (DDIM(1.0), DDPM("fixed_small")):
    torch.manual_seed(0)
    ends.append(last(sampler(on_vp, torch.randn(100, 2, **F64), Linspace(7)(vp))).x)
print("12.", (ends[0] - ends[1]).abs().max().item())

# %% [markdown]
# ## And why the noise is annealed
# Two modes of weights 1/5 and 4/5. Langevin dynamics at one small noise level keeps every point in the basin it began in; the same number
# of steps down a ladder of levels recovers the weights.

# %%
far = VE(10, sigma_min=0.1, sigma_max=20.0)
modes = GaussianMixture(torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), torch.ones(2), torch.tensor([0.2, 0.8]), far)
ladder, start = Exponential(10)(far), 16 * torch.rand(1000, 2, **F64) - 8
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
plain, annealed = last(Langevin(1000, 0.2)(modes, start, ladder[-2:])).x, last(Langevin(100, 0.2)(modes, start, ladder)).x
for axis, (name, x) in zip(axes, [("data", modes.sample(1000)), ("Langevin", plain), ("annealed Langevin", annealed)], strict=True):
    axis.scatter(*x.T, s=2)
    axis.set_title(f"{name}: {(x.sum(1) < 0).double().mean():.0%} below")
