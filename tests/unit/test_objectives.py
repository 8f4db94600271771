"""The losses by a second derivation: torch.distributions, DDPM's tables in betas, Monte Carlo, and a model whose likelihood is known."""

from math import log, log2

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffusion.denoiser import Denoiser, Estimate
from diffusion.objectives import VLB, Hybrid, Simple, discretised_log_likelihood, variational_term
from diffusion.parameterization import X0, Epsilon, Score, V, Velocity
from diffusion.posterior import posterior
from diffusion.schedules import VE, Cosine, Flow, Linear

F64 = {"dtype": torch.float64}
T = 30
SCHEDULE = Cosine(T)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def pixels(*shape: int, seed: int = 5) -> torch.Tensor:
    """8-bit images as the model sees them, with black and white among them."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    levels.view(-1)[:2] = torch.tensor([0, 255])
    return levels.double() / 127.5 - 1


class Network(nn.Module):
    """Some function of (x_t, label) with weights; with `learned`, a second half in about [-1, 1]."""

    def __init__(self, learned: bool):
        super().__init__()
        self.mean, self.variance = (nn.Parameter(torch.tensor([0.6, 0.2], **F64)) for _ in range(2))
        self.learned = learned

    def forward(self, x_t, label, cond):
        time = (label.double() / T).reshape(-1, *[1] * (x_t.ndim - 1))
        out = self.mean[0] * x_t + self.mean[1] * time
        return torch.cat([out, (self.variance[0] * x_t + self.variance[1] + time).sin()], 1) if self.learned else out


def denoiser(learned=True, read=None, schedule=SCHEDULE) -> Denoiser:
    return Denoiser(Network(learned), schedule, read or Epsilon(), learned)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_0, t, eps) with every step 1..T once."""
    return pixels(T, 2, 4, 4), torch.arange(1, T + 1, **F64) / T, randn(T, 2, 4, 4)


def tables() -> dict[str, torch.Tensor]:
    """improved-diffusion's tables, t = 0..T-1, from the betas; abar_{-1} = 1; the clipped log variance of t = 0 is that of t = 1."""
    beta = SCHEDULE.betas()
    abar = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, **F64), abar[:-1]])
    small = beta * (1 - before) / (1 - abar)
    found = {
        "abar": abar,
        "log_small": torch.cat([small[1:2], small[1:]]).log(),
        "log_large": beta.log(),
        "coef_x0": beta * before.sqrt() / (1 - abar),
        "coef_x_t": (1 - before) * (1 - beta).sqrt() / (1 - abar),
    }
    return {name: value[:, None, None, None] for name, value in found.items()}


def bits(terms: torch.Tensor) -> torch.Tensor:
    return terms.flatten(1).mean(1) / log(2)


def by_hand(x0, eps, learned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_simple, the term of the bound) for the batch's steps, with torch.distributions for the KL and the decoder (traps 1-5)."""
    table = tables()
    x_t = table["abar"].sqrt() * x0 + (1 - table["abar"]).sqrt() * eps
    out = Network(learned)(x_t, torch.arange(T), None).detach()
    guess, raw = out.chunk(2, 1) if learned else (out, torch.ones_like(out))
    guessed_x0 = (x_t - (1 - table["abar"]).sqrt() * guess) / table["abar"].sqrt()
    true_mean, mean = (table["coef_x0"] * x + table["coef_x_t"] * x_t for x in (x0, guessed_x0))
    v = (raw + 1) / 2
    std = (0.5 * (v * table["log_large"] + (1 - v) * table["log_small"])).exp()
    kl = kl_divergence(Normal(true_mean, (0.5 * table["log_small"]).exp().expand_as(std)), Normal(mean, std))
    p = Normal(mean[:1], std[:1])
    upper, lower = p.cdf(x0[:1] + 1 / 255), p.cdf(x0[:1] - 1 / 255)
    mass = torch.where(x0[:1] > 0.999, 1 - lower, torch.where(x0[:1] < -0.999, upper, upper - lower))
    decoder = -mass.clamp(min=1e-12).log()
    return ((guess - eps) ** 2).flatten(1).mean(1), bits(torch.cat([decoder, kl[1:]]))


@pytest.mark.parametrize("learned", [True, False])
def test_every_term_is_torch_distributions(learned):
    x0, t, eps = batch()
    x_t = torch.stack([SCHEDULE(i)[0] * x + SCHEDULE(i)[1] * e for x, i, e in zip(x0, t, eps, strict=True)])
    got = variational_term(SCHEDULE, denoiser(learned)(x_t, t), x0, x_t, t)
    torch.testing.assert_close(got, by_hand(x0, eps, learned)[1], rtol=1e-8, atol=1e-10)


def test_simple():
    x0, t, eps = batch()
    losses = Simple()(denoiser(learned=False), x0, t, eps)
    assert losses.keys() == {"loss", "simple"} and losses["loss"].shape == (T,)
    torch.testing.assert_close(losses["loss"], by_hand(x0, eps, False)[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(losses["simple"], losses["loss"])


@pytest.mark.parametrize("read", [Epsilon(), X0(), V(), Score(), Velocity()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("schedule", [Cosine(), VE()], ids=repr)
def test_simple_is_the_error_of_the_network_s_own_output(read, schedule):
    x0, eps, out = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1), randn(4, 2, 3, 3, seed=2)
    t = torch.tensor([0.004, 0.25, 0.5, 0.9], **F64)
    alpha, sigma = (v[:, None, None, None] for v in schedule(t))
    target = {"Epsilon": eps, "X0": x0, "V": alpha * eps - sigma * x0, "Score": -eps / sigma, "Velocity": eps - x0}[type(read).__name__]
    network = nn.Module()
    network.forward = lambda x_t, label, cond: out
    loss = Simple()(Denoiser(network, schedule, read), x0, t, eps)["loss"]
    torch.testing.assert_close(loss, ((out - target) ** 2).mean((1, 2, 3)), rtol=1e-7, atol=1e-9)


def test_simple_at_pure_noise_is_finite():
    for schedule in (Flow(), Linear(zero_terminal_snr=True)):
        loss = Simple()(denoiser(False, V(), schedule), randn(2, 1, 2, 2), torch.ones(2, **F64), randn(2, 1, 2, 2))["loss"]
        assert loss.isfinite().all()


def test_vlb_is_t_times_one_term_in_bits():
    x0, t, eps = batch()
    losses = VLB()(denoiser(), x0, t, eps)
    term = by_hand(x0, eps, True)[1]
    torch.testing.assert_close(losses["vlb"], term, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(losses["loss"], T * term, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("weight", [0.001, 0.5])
def test_hybrid_weighs_t_times_the_term(weight):
    """Trap 1: L_simple + lambda T L_t; improved-diffusion's `vb * T / 1000` is lambda = 0.001."""
    x0, t, eps = batch()
    losses = Hybrid(weight)(denoiser(), x0, t, eps)
    mse, term = by_hand(x0, eps, True)
    assert losses.keys() == {"loss", "simple", "vlb"} and Hybrid().weight == 0.001
    torch.testing.assert_close(losses["loss"], mse + weight * T * term, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses["simple"], mse, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["vlb"], term, rtol=1e-8, atol=1e-10)


def gradients(objective) -> tuple[torch.Tensor, torch.Tensor]:
    model = denoiser()
    objective(model, *batch())["loss"].mean().backward()
    zero = torch.zeros(2, **F64)
    return tuple(zero if p.grad is None else p.grad for p in (model.network.mean, model.network.variance))


def test_the_bound_trains_the_variance_alone_in_hybrid():
    """Trap 4: the mean's gradient is L_simple's to the last bit, and the variance's is lambda times L_vlb's."""
    simple, hybrid, vlb = gradients(Simple()), gradients(Hybrid(weight=0.25)), gradients(VLB())
    torch.testing.assert_close(hybrid[0], simple[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(hybrid[1], 0.25 * vlb[1], rtol=1e-12, atol=0)
    assert (simple[1] == 0).all() and (vlb[0] != 0).all() and (hybrid[1] != 0).all()


@pytest.mark.parametrize("t", [1 / T, 2 / T, 0.5, 1.0])
def test_gradients_are_finite_for_wild_outputs(t):
    """Neither the unused branch of the t = 1/T term nor an empty bin poisons the gradient."""
    x_t = randn(1, 2, 3, 3)
    x0 = (50 * randn(1, 2, 3, 3)).requires_grad_()
    frac = (3 * randn(1, 2, 3, 3, seed=2)).requires_grad_()
    variational_term(SCHEDULE, Estimate(x0, x_t, frac), pixels(1, 2, 3, 3), x_t, torch.tensor([t], **F64)).sum().backward()
    assert x0.grad.isfinite().all() and frac.grad.isfinite().all()


def test_the_decoder_is_a_distribution_over_256_levels():
    """DDPM eq. 13: the masses of all levels sum to 1, the open ends included; a level's mass is the Gaussian's over its bin."""
    levels = torch.arange(256, **F64) / 127.5 - 1
    for mean, std in ((0.1, 0.3), (-1.2, 0.01), (0.9, 1.0), (3.0, 0.5)):
        mean_, log_std = torch.full_like(levels, mean), torch.full_like(levels, log(std))
        mass = discretised_log_likelihood(levels, mean_, log_std).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-9)  # 256 floors of 1e-12
    draws = (0.1 + 0.3 * randn(1_000_000)).clamp(-1, 1)
    counted = (draws * 127.5 + 127.5).round().long().bincount(minlength=256) / 1_000_000
    mass = discretised_log_likelihood(levels, torch.full_like(levels, 0.1), torch.full_like(levels, log(0.3))).exp()
    assert ((counted - mass).abs() < 6 * (mass / 1_000_000).sqrt()).all()


def test_an_impossible_level_costs_the_floor():
    """Trap 5: 1e-12."""
    far = discretised_log_likelihood(torch.tensor(0.0), torch.tensor(0.9), torch.tensor(-8.0))
    assert far.item() == pytest.approx(log(1e-12))


def test_the_first_step_is_the_decoder_and_not_a_kl():
    """Traps 2, 5: an exact x_0 costs what a Gaussian of the second step's variance leaves outside the bin, and not log 1e-20."""
    x0, x_t = pixels(1, 2, 4, 4), randn(1, 2, 4, 4)
    for frac in (0.0, 0.5, 1.0):
        log_var = frac * tables()["log_large"][0] + (1 - frac) * tables()["log_small"][1]
        got = variational_term(SCHEDULE, Estimate(x0, x_t, torch.full_like(x0, frac)), x0, x_t, torch.tensor([1 / T], **F64))
        want = -discretised_log_likelihood(x0, x0, 0.5 * log_var.expand_as(x0))
        torch.testing.assert_close(got, bits(want), rtol=1e-8, atol=1e-12)
        assert 0 < got.item() < 20


def test_a_perfect_estimate_costs_nothing_but_the_variance():
    """KL between Gaussians of one mean: 1/2 (log r - 1 + 1/r), r the ratio of variances; 0 when the learned variance is the posterior's."""
    x0, t, x_t = pixels(T - 1, 1, 2, 2), torch.arange(2, T + 1, **F64) / T, randn(T - 1, 1, 2, 2)
    exact = variational_term(SCHEDULE, Estimate(x0, x_t, torch.zeros_like(x0)), x0, x_t, t)
    torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-12)
    r = (tables()["log_large"] - tables()["log_small"])[1:, 0, 0, 0].exp()
    for estimate in (Estimate(x0, x_t, torch.ones_like(x0)), Estimate(x0, x_t)):  # none learned: the larger variance
        got = variational_term(SCHEDULE, estimate, x0, x_t, t)
        torch.testing.assert_close(got, 0.5 * (r.log() - 1 + 1 / r) / log(2), rtol=1e-7, atol=1e-10)


def test_a_term_is_what_simulation_says():
    """L_t = E_q [log q(x_s | x_t, x_0) - log p(x_s | x_t)], x_s drawn from the chain; 5 standard errors of 200,000 draws."""
    n, t = 200_000, torch.tensor(12 / T, **F64)
    s = t - 1 / T
    x0, x_t, guess, frac = (torch.tensor(v, **F64).reshape(1, 1, 1, 1) for v in (0.3, 0.5, 0.1, 0.6))
    mean, small, large = posterior(x_t, x0, t, s, SCHEDULE)
    theirs, _, _ = posterior(x_t, guess, t, s, SCHEDULE)
    q, p = Normal(mean, small.sqrt()), Normal(theirs, (0.6 * large.log() + 0.4 * small.log()).mul(0.5).exp())
    x_s = mean + small.sqrt() * randn(n, 1, 1, 1)
    draws = (q.log_prob(x_s) - p.log_prob(x_s)) / log(2)
    term = variational_term(SCHEDULE, Estimate(guess, x_t, frac), x0, x_t, t[None])
    assert abs(draws.mean() - term) < 5 * draws.std() / n**0.5


class LinearGaussian:
    """Data N(m, std^2): p(x_s | x_t) is Gaussian, with a mean of the posterior's form at E[x_0 | x_t] and this fraction as its variance:

    Var(x_s | x_t) = small + (alpha_s b2 / sigma_t^2)^2 Var(x_0 | x_t)."""

    schedule = SCHEDULE
    m, std = 0.2, 0.3

    def exact(self, x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
        alpha, sigma = (v.reshape(-1, 1) for v in SCHEDULE(t))
        spread = alpha**2 * self.std**2 + sigma**2
        x0 = self.m + alpha * self.std**2 / spread * (x_t - alpha * self.m)
        steps = (t * T).round().long() - 1
        log_small, log_large = (tables()[name].flatten()[steps][:, None] for name in ("log_small", "log_large"))
        coef = tables()["coef_x0"].flatten()[steps][:, None]
        small = torch.where(steps[:, None] == 0, 0.0, log_small.exp())
        variance = small + coef**2 * self.std**2 * sigma**2 / spread
        frac = (variance.log() - log_small) / (log_large - log_small)
        return Estimate(x0, (x_t - alpha * x0) / sigma, frac.expand_as(x_t))


def bound(change: float = 0.0, more: float = 0.0, n: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(every term [T], L_T, x_0) for n pixels of linear-Gaussian data; `change` moves the mean and `more` the fraction off the exact."""
    model = LinearGaussian()
    levels = ((model.m + model.std * randn(1, n)) * 127.5 + 127.5).round()
    x0 = (levels.clamp(0, 255) / 127.5 - 1).expand(T, n)
    t = torch.arange(1, T + 1, **F64) / T
    alpha, sigma = (v[:, None] for v in SCHEDULE(t))
    x_t = alpha * x0 + sigma * randn(T, n, seed=4)
    estimate = model.exact(x_t, t)
    terms = variational_term(SCHEDULE, estimate._replace(x0=estimate.x0 + change, frac=estimate.frac + more), x0, x_t, t)
    prior = kl_divergence(Normal(alpha[-1] * x0[-1], sigma[-1]), Normal(0.0, 1.0)).mean() / log(2)
    return terms, prior, x0[0]


def test_the_exact_model_s_whole_bound_is_its_likelihood():
    """For linear-Gaussian data the reverse chain is exact, so L_0 + sum L_t + L_T = -log2 P(level): in total, not term by term.

    Three standard errors of 20,000 pixels are about 0.01 bits; the level's own mass is the second derivation (MATHS 4; trap 6)."""
    terms, prior, x0 = bound()
    truth = Normal(torch.tensor(LinearGaussian.m, **F64), torch.tensor(LinearGaussian.std, **F64))
    upper, lower = truth.cdf(x0 + 1 / 255), truth.cdf(x0 - 1 / 255)
    mass = torch.where(x0 > 0.999, 1 - lower, torch.where(x0 < -0.999, upper, upper - lower))
    assert (terms.sum() + prior).item() == pytest.approx(-mass.log2().mean().item(), abs=0.02)
    assert prior < 1e-3 and (terms > 0).all()
    assert -mass.log2().mean().item() == pytest.approx(
        log2(127.5) + log2(LinearGaussian.std) + 0.5 * log2(2 * torch.pi * torch.e), abs=0.02
    )


@pytest.mark.parametrize(("change", "more"), [(0.05, 0), (-0.05, 0), (0, 0.1), (0, -0.1)])
def test_the_exact_model_is_the_minimiser_of_every_term(change, more):
    """On the same noise, each term rises when its mean or its variance leaves the exact one. Among n = 20,000 pixels the minimum lies
    within a few 0.3/sqrt(n) = 0.002 of the exact one, far nearer than these steps."""
    exact, _, _ = bound()
    moved, _, _ = bound(change, more)
    assert (moved > exact).all()


def test_float32_agrees_with_float64():
    x0, t, eps = batch()
    exact = Hybrid()(denoiser(), x0, t, eps)
    single = Hybrid()(denoiser().float(), x0.float(), t, eps.float())
    for name, value in single.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], rtol=2e-3, atol=1e-4)


def test_the_condition_reaches_the_network():
    seen = []

    class Conditional(Network):
        def forward(self, x_t, label, cond):
            seen.append(cond)
            return super().forward(x_t, label, cond)

    x0, t, eps = batch()
    cond = torch.arange(T)
    for objective in (Simple(), VLB(), Hybrid()):
        objective(Denoiser(Conditional(objective.learned_variance), SCHEDULE, Epsilon(), objective.learned_variance), x0, t, eps, cond)
    assert all(c is cond for c in seen) and len(seen) == 3
    assert [o.learned_variance for o in (Simple(), VLB(), Hybrid())] == [False, True, True]


@pytest.mark.parametrize("objective", [VLB(), Hybrid()])
def test_a_bound_in_continuous_time_is_refused(objective):
    x0, t, eps = batch()
    with pytest.raises(ValueError, match=r"Flow has none; use a discrete schedule such as schedule=cosine\."):
        objective(denoiser(schedule=Flow(), read=V()), x0, t, eps)
