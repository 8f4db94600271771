"""The twelve problems of document 003, each in numbers: autograd and Monte Carlo on data whose density is known, and the code's own
schedule, posterior, step, objectives and samplers. Monte Carlo tolerances are five standard errors; all else is float64.

`now` and `then` are the paper's abar at t and at t - 1."""

from math import log, pi

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffusion.denoiser import Denoiser
from diffusion.grids import Linspace
from diffusion.objectives import DSM, SSM, ExactScoreMatching
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Score
from diffusion.posterior import posterior, step
from diffusion.samplers import DDIM, DDPM
from diffusion.schedules import VE, Cosine, Linear

F64 = {"dtype": torch.float64}
N = 20_000
VEX, VP = VE(100), Linear(30, beta_end=0.01)
LEVEL = torch.tensor(0.6, **F64)  # sigma = 1.6 of VEX
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.0, 1.0], [0.0, -1.5]]), torch.tensor([0.5, 0.3, 0.8]), torch.tensor([0.3, 0.5, 0.2]), VEX
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def vanishes(x: torch.Tensor) -> bool:
    """Whether the mean of independent draws is 0 within five standard errors."""
    return bool((x.mean(0).abs() < 5 * x.std(0) / len(x) ** 0.5).all())


class Theta(nn.Module):
    """Some score s_theta(x) = A x + B tanh(x), theta by its number. It undoes the network's input scale of a VE path."""

    def __init__(self, number: int):
        super().__init__()
        self.a, self.b = randn(2, 2, 2, seed=100 + number) / 2

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a + x.tanh() @ self.b

    def forward(self, x: torch.Tensor, label: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        return self.score(x * (1 + VEX(LEVEL)[1] ** 2).sqrt())


def noisy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, t, eps, x~): data, the level, noise, and x~ = x + sigma eps; the scores of x~'s density are the mixture's."""
    x, eps = MIXTURE.sample(N, generator=torch.Generator().manual_seed(1)), randn(N, 2, seed=2)
    return x, LEVEL.expand(N), eps, x + VEX(LEVEL)[1] * eps


def unscaled(objective, theta: Theta) -> torch.Tensor:
    """An objective's loss of each sample, without lambda = sigma^2 and as a sum over the dimensions, as document 003 has it."""
    x, t, eps, _ = noisy()
    torch.manual_seed(0)
    return 2 * objective(Denoiser(theta, VEX, Score()), x, t, eps)["loss"].detach() / VEX(LEVEL)[1] ** 2


def explicit(theta: Theta) -> torch.Tensor:
    """1/2 ||s_theta - grad log p||^2 of each sample (eq. 3, 12)."""
    x = noisy()[3]
    return 0.5 * ((theta.score(x) - MIXTURE.score(x, LEVEL)) ** 2).sum(1)


THETAS = [Theta(0), Theta(1), Theta(2)]


@pytest.mark.parametrize("theta", THETAS, ids=range(3))
def test_1_explicit_and_implicit_score_matching(theta):
    """Eq. 3 = eq. 4 + E[1/2 ||grad log p||^2], which holds no theta."""
    constant = 0.5 * (MIXTURE.score(noisy()[3], LEVEL) ** 2).sum(1)
    assert vanishes(explicit(theta) - unscaled(ExactScoreMatching(), theta) - constant)


@pytest.mark.parametrize("objective", [SSM(), SSM(reduced=False)], ids=repr)
@pytest.mark.parametrize("theta", THETAS, ids=range(3))
def test_2_the_trace_by_random_slices(theta, objective):
    """Eq. 4 = eq. 5: E[v^T J v] = tr J for v ~ N(0, I), and E[(v^T s)^2] = ||s||^2."""
    assert vanishes(unscaled(objective, theta) - unscaled(ExactScoreMatching(), theta))
    assert unscaled(objective, theta).std() > 0.1


@pytest.mark.parametrize("theta", THETAS, ids=range(3))
def test_3_explicit_and_denoising_score_matching(theta):
    """Eq. 12 = eq. 13 + 1/2 E||grad log q(x~)||^2 - 1/2 E||grad log q(x~|x)||^2."""
    _, _, eps, x = noisy()
    constant = 0.5 * (MIXTURE.score(x, LEVEL) ** 2).sum(1) - 0.5 * ((eps / VEX(LEVEL)[1]) ** 2).sum(1)
    assert vanishes(explicit(theta) - unscaled(DSM(), theta) - constant)


def test_4_the_closed_kernel():
    """Eq. 18 from eq. 17: x_t as the chain makes it is one Gaussian around sqrt(abar_t) x_0, by its coefficients and by running it."""
    on_x0, on_noise, x, x0 = torch.ones((), **F64), torch.zeros(30, **F64), torch.full((N,), 0.7, **F64), 0.7
    for i, beta in enumerate(VP.betas()):
        on_x0, on_noise = (1 - beta).sqrt() * on_x0, (1 - beta).sqrt() * on_noise
        on_noise[i] = beta.sqrt()
        x = (1 - beta).sqrt() * x + beta.sqrt() * randn(N, seed=i)
        alpha, sigma = VP(torch.tensor((i + 1) / 30, **F64))
        torch.testing.assert_close(on_x0, alpha, rtol=1e-12, atol=0)
        torch.testing.assert_close(on_noise.square().sum().sqrt(), sigma, rtol=1e-12, atol=0)
        z = (x - alpha * x0) / sigma
        assert vanishes(z) and vanishes(z**2 - 1) and vanishes(z**4 - 3)


@pytest.mark.parametrize("schedule", [VP, Cosine(30)], ids=repr)
def test_5_unit_variance(schedule):
    """Var(x_0) = 1 stays: abar_t + (1 - abar_t) = 1, whatever x_0's distribution; here it is two points."""
    t = torch.linspace(0, 1, 301, **F64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(301, **F64), rtol=1e-14, atol=0)
    x0 = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0).double()
    for a, s in zip(alpha[::60], sigma[::60], strict=True):
        assert vanishes((a * x0 + s * randn(N)) ** 2 - 1) or s == 0


# ---- a chain of three steps on the line: p(x_3) = N(0, 1), p(x_{t-1} | x_t) = N(a x_t + b, v)

STEPS = 3
BETA = torch.tensor([0.2, 0.5, 0.7], **F64)
ABAR = torch.cat([torch.ones(1, **F64), (1 - BETA).cumprod(0)])


class Betas(Cosine):
    """The chain's schedule: three given betas."""

    def betas(self) -> torch.Tensor:
        return BETA


SHORT = Betas(3)
MODELS = [(0.9, 0.1, 0.3), (0.4, -0.3, 0.8), (1.1, 0.0, 0.1)]


def knot(i: int) -> torch.Tensor:
    return torch.tensor(i / STEPS, **F64)


def path(x0: torch.Tensor) -> list[torch.Tensor]:
    """x_0, x_1, x_2, x_3 by eq. 17."""
    xs = [x0]
    for i, beta in enumerate(BETA):
        xs.append((1 - beta).sqrt() * xs[-1] + beta.sqrt() * randn(len(x0), seed=10 + i))
    return xs


def eq_22(xs: list[torch.Tensor], a: float, b: float, v: float) -> torch.Tensor:
    """-log p(x_T) - sum_t log p(x_{t-1}|x_t)/q(x_t|x_{t-1}), each path."""
    total = -Normal(0.0, 1.0).log_prob(xs[-1])
    for i, beta in enumerate(BETA):
        q = Normal((1 - beta).sqrt() * xs[i], beta.sqrt())
        total = total - Normal(a * xs[i + 1] + b, v**0.5).log_prob(xs[i]) + q.log_prob(xs[i + 1])
    return total


def eq_23(xs: list[torch.Tensor], a: float, b: float, v: float) -> torch.Tensor:
    """-log p(x_T)/q(x_T|x_0) - sum_{t>1} log p(x_{t-1}|x_t)/q(x_{t-1}|x_t,x_0) - log p(x_0|x_1), with the code's posterior."""
    alpha, sigma = SHORT(knot(STEPS))
    total = Normal(alpha * xs[0], sigma).log_prob(xs[-1]) - Normal(0.0, 1.0).log_prob(xs[-1])
    for i in range(2, STEPS + 1):
        mean, small, _ = posterior(xs[i], xs[0], knot(i), knot(i - 1), SHORT)
        total = total - Normal(a * xs[i] + b, v**0.5).log_prob(xs[i - 1]) + Normal(mean, small.sqrt()).log_prob(xs[i - 1])
    return total - Normal(a * xs[1] + b, v**0.5).log_prob(xs[0])


@pytest.mark.parametrize("model", MODELS)
def test_6_jensen(model):
    """Eq. 21: -log p(x_0), exact here since all is Gaussian, is below the bound; by its Kullback-Leibler gap, not by luck."""
    a, b, v = model
    mean, variance = 0.0, 1.0
    for _ in range(STEPS):
        mean, variance = a * mean + b, a * a * variance + v
    x0 = 0.5 * randn(N) + 0.2
    gap = eq_22(path(x0), *model) + Normal(mean, variance**0.5).log_prob(x0)
    assert gap.mean() > 5 * gap.std() / N**0.5


def test_6_jensen_is_equality_for_the_true_reverse_chain():
    """Of x_0 ~ N(0, 1) every x_t is N(0, 1) and the reverse step is N(sqrt(1 - beta) x_t, beta): on each path the bound is -log p(x_0)."""
    x0 = randn(N)
    xs = path(x0)
    bound = -Normal(0.0, 1.0).log_prob(xs[-1])
    for i, beta in enumerate(BETA):
        q, p = Normal((1 - beta).sqrt() * xs[i], beta.sqrt()), Normal((1 - beta).sqrt() * xs[i + 1], beta.sqrt())
        bound = bound - p.log_prob(xs[i]) + q.log_prob(xs[i + 1])
    torch.testing.assert_close(bound, -Normal(0.0, 1.0).log_prob(x0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_7_the_bound_s_split(model):
    """Eq. 23 = eq. 22 on every path, not only on average."""
    xs = path(0.5 * randn(N) + 0.2)
    torch.testing.assert_close(eq_23(xs, *model), eq_22(xs, *model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", [2, 3])
def test_8_the_posterior(i):
    """Bayes' rule on a grid of x_{t-1}: q(x_t|x_{t-1}) q(x_{t-1}|x_0) / q(x_t|x_0) is the code's Gaussian; and the form in eps, with
    1/sqrt(alpha_t), MATHS 9."""
    grid, beta = torch.linspace(-4, 4, 801, **F64), BETA[i - 1]
    x0, eps = torch.tensor([0.3], **F64), torch.tensor([-0.8], **F64)
    x_t = ABAR[i].sqrt() * x0 + (1 - ABAR[i]).sqrt() * eps
    mean, small, large = posterior(x_t, x0, knot(i), knot(i - 1), SHORT)
    before = Normal(ABAR[i - 1].sqrt() * x0, (1 - ABAR[i - 1]).sqrt())
    joint = Normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(x_t) + before.log_prob(grid)
    bayes = joint - Normal(ABAR[i].sqrt() * x0, (1 - ABAR[i]).sqrt()).log_prob(x_t)
    torch.testing.assert_close(Normal(mean, small.sqrt()).log_prob(grid), bayes, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mean, (x_t - beta / (1 - ABAR[i]).sqrt() * eps) / (1 - beta).sqrt(), rtol=1e-12, atol=1e-12)
    assert large.item() == pytest.approx(beta.item()) and small < large


@pytest.mark.parametrize("schedule", [VP, VEX, Cosine()], ids=lambda s: type(s).__name__)
def test_9_the_score_is_minus_eps_over_sigma(schedule):
    """grad log p(x_t), by autograd of the density, is -E[eps | x_t]/sigma_t with sigma_t = sqrt(1 - abar_t) on a VP path."""
    mixture = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, schedule)
    x = randn(200, 2).requires_grad_()
    for t in torch.tensor([0.1, 0.5, 0.9], **F64):
        gradient = torch.autograd.grad(mixture.log_prob(x, t).sum(), x)[0]
        torch.testing.assert_close(gradient, -mixture(x.detach(), t).eps / schedule(t)[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_10_the_marginals_of_ddim(eta):
    """Eq. 40 and 41 give eq. 42: from N(sqrt(abar_T) x_0, 1 - abar_T) each move with the true x_0 lands on the next marginal. The move is
    affine in x_t and noise, so mean and variance are propagated exactly."""
    x0, zero = torch.tensor([0.7], **F64), torch.zeros(1, **F64)
    alpha, sigma = VP(torch.ones((), **F64))
    mean, variance = alpha * x0, sigma**2
    for i in range(30, 1, -1):
        t, s = (torch.tensor(j / 30, **F64) for j in (i, i - 1))

        def move(x, z, t=t, s=s):
            return step(x, x0, t, s, VP, eta, lambda _: torch.full_like(x, z))

        gain = move(zero + 1, 0.0) - move(zero, 0.0)
        mean, variance = move(mean, 0.0), gain**2 * variance + (move(zero, 1.0) - move(zero, 0.0)) ** 2
        alpha, sigma = VP(s)
        torch.testing.assert_close(mean, alpha * x0, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(variance, (sigma**2).expand(1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_11_the_theorem(eta):
    """Eq. 46: L_vlb(theta; sigma) = sum_t gamma_t ||eps - eps_theta||^2 + C, on every path, with

    gamma_t = c_t^2 / (2 sigma_t^2), c_t = sqrt(abar_{t-1}) sqrt(1 - abar_t)/sqrt(abar_t) - sqrt(1 - abar_{t-1} - sigma_t^2), and C the
    same for all theta. sigma_1, which DDIM sets to 0, is any positive number here."""
    x0, first = 0.5 * randn(500), 0.05
    constants = []
    for theta in range(3):
        total, weighted = torch.zeros(500, **F64), torch.zeros(500, **F64)
        for i in range(1, 31):
            t, s, eps = torch.tensor(i / 30, **F64), torch.tensor((i - 1) / 30, **F64), randn(500, seed=i)
            (alpha, sigma), (alpha_s, sigma_s) = VP(t), VP(s)
            x_t = alpha * x0 + sigma * eps
            guess = eps + 0.3 * torch.sin(3 * x_t + theta) + 0.1 * theta  # eps_theta
            x0_hat = (x_t - sigma * guess) / alpha
            if i == 1:
                deviation, q_entropy = torch.tensor(first, **F64), 0.5 * log(2 * pi * first**2)
                total = total - Normal(x0_hat, deviation).log_prob(x0)
            else:
                still = [step(x_t, x, t, s, VP, eta, torch.zeros_like) for x in (x0, x0_hat)]
                deviation = step(x_t, x0, t, s, VP, eta, torch.ones_like)[0] - still[0][0]
                total = total + kl_divergence(Normal(still[0], deviation), Normal(still[1], deviation))
            c = alpha_s * sigma / alpha - (sigma_s**2 - (deviation**2 if i > 1 else 0)).clamp(min=0).sqrt()
            weighted = weighted + c**2 / (2 * deviation**2) * (eps - guess) ** 2
        constants.append(total - weighted)
    for constant in constants:
        torch.testing.assert_close(constant, torch.full((500,), q_entropy, **F64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [30, 7])
def test_12_ddim_with_eta_1_is_ddpm(steps):
    """Eq. 47 at eta = 1 against DDPM with beta tilde, move by move from the same noise, on the whole chain and on a sub-sequence."""
    mixture = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, VP)
    times, x = Linspace(steps)(VP), randn(50, 2)
    runs = []
    for sampler in (DDIM(1.0), DDPM("fixed_small")):
        torch.manual_seed(0)
        runs.append([state.x for state in sampler(mixture, x, times)])
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
