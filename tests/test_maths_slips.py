"""The slips of four lecture documents, one test each: in numbers, what the document says is wrong, and the code does the right thing.

Documents 000-003 are the courses this project was first written from; a test's name gives document and equation. `now` and `then` are
abar at t and at the earlier s. Eq. 75 of document 000, about DPM2's order, is in tests/oracle/test_order.py; the slip of document 001
about the latents' shape in tests/parity/test_foreign_parts.py.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from diffusion.denoiser import Denoiser, Estimate
from diffusion.generate import trajectories
from diffusion.grids import Karras, Leading, Linspace, Trailing
from diffusion.guidance import Classifier, ClassifierFree, Unconditional
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import Epsilon
from diffusion.posterior import posterior, step
from diffusion.samplers import DDIM, DDPM, EulerAncestral, last
from diffusion.schedules import VE, Cosine, Linear, Schedule
from diffusion.training import lr_schedules

F64 = {"dtype": torch.float64}
T = 1000
LINEAR = Linear()
BETA = LINEAR.betas()
ABAR = torch.cat([torch.ones(1, **F64), (1 - BETA).cumprod(0)])  # ABAR[i] after i steps, the papers' abar_i
ONE = torch.ones(1, **F64)


def time(i: int) -> torch.Tensor:
    return torch.tensor(i / T, **F64)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), **F64)


def truth(x_t: torch.Tensor, x0: torch.Tensor, i: int, j: int) -> tuple[torch.Tensor, float]:
    """(mean, variance) of q(x_j | x_i, x_0) for j < i by adding precisions of N(x_j; sqrt(abar_j) x_0, 1 - abar_j) and of the forward
    steps from j to i, N(x_i; a x_j, 1 - a^2), a^2 = abar_i/abar_j: nothing of the code under test."""
    now, then = ABAR[i], ABAR[j]
    a2 = now / then
    precision = 1 / (1 - then) + a2 / (1 - a2)
    return (then.sqrt() * x0 / (1 - then) + a2.sqrt() * x_t / (1 - a2)) / precision, (1 / precision).item()


def point(x0: float, schedule=LINEAR):
    """The perfect denoiser of data that is the one value x0."""

    def denoise(x, t, cond=None):
        alpha, sigma = schedule(t)
        return Estimate(torch.full_like(x, x0), (x - alpha * x0) / sigma)

    denoise.schedule = schedule
    return denoise


# ---- 000


def test_000_eq_21_the_variance_of_a_sub_sequence():
    """It has beta_k, k the loop's index 0..N-1; beta of the sub-sequence is 1 - abar_{t_k}/abar_{t_{k+1}}."""
    steps = [round(t.item() * T) for t in Leading(10)(LINEAR)[:-1]]
    for k, (i, j) in enumerate(pairwise(steps)):
        _, small, large = posterior(ONE, ONE, time(i), time(j), LINEAR)
        variance = truth(ONE, ONE, i, j)[1]
        assert small.item() == pytest.approx(variance, rel=1e-9)
        assert large.item() == pytest.approx((1 - ABAR[i] / ABAR[j]).item(), rel=1e-9)
        for beta in (BETA[k], BETA[i - 1]):  # as printed, and as "beta_{t_k}", the step's own beta
            assert ((1 - ABAR[j]) / (1 - ABAR[i]) * beta).item() < 0.1 * variance


@pytest.mark.parametrize("stride", [1, 100])
def test_000_eq_23_the_coefficient_of_eps(stride):
    """It has beta/sqrt(abar) times sqrt(1 - abar); it is beta/(sqrt(alpha) sqrt(1 - abar)), with the sub-sequence's beta and alpha."""
    i, j = 401, 401 - stride
    x0, eps = randn(2, 50)
    x_t = ABAR[i].sqrt() * x0 + (1 - ABAR[i]).sqrt() * eps
    mean, _, _ = posterior(x_t, x0, time(i), time(j), LINEAR)
    torch.testing.assert_close(mean, truth(x_t, x0, i, j)[0], rtol=1e-9, atol=1e-9)
    alpha = ABAR[i] / ABAR[j]
    torch.testing.assert_close(mean, (x_t - (1 - alpha) / (1 - ABAR[i]).sqrt() * eps) / alpha.sqrt(), rtol=1e-9, atol=1e-9)
    own_beta = BETA[i - 1]
    printed = x_t / (1 - own_beta).sqrt() - own_beta / ABAR[i].sqrt() * (1 - ABAR[i]).sqrt() * eps
    assert (printed - mean).abs().max() > 5e-3


def test_000_eq_16_17_where_a_leading_grid_starts():
    """It draws x at t_0 = r(N - 1) from N(0, I); x_t still holds sqrt(abar) x_0: cosine, N = 10, 15 %. Trailing does not."""
    schedule = Cosine()
    signal = [schedule(grid(schedule)[0])[0].item() for grid in (Leading(10), Trailing(10))]
    assert round(Leading(10)(schedule)[0].item() * T) - 1 == T // 10 * (10 - 1)
    assert signal[0] == pytest.approx(0.154, abs=5e-4) and signal[1] < 1e-4
    x_t = signal[0] * 1.0 + schedule(Leading(10)(schedule)[0])[1] * randn(40_000)  # the truth for images of value 1
    assert x_t.mean() > 0.14 and abs(randn(40_000).mean()) < 0.02


def test_000_main_loop_stops_one_move_early():
    """k = 0..N-2 ends in x at time index 0, with noise of variance 1 - abar_0 left; one more, without noise, ends at abar_{-1} = 1."""
    times, x = Leading(10)(LINEAR), randn(2000)
    torch.manual_seed(0)
    states = list(DDPM()(point(0.3), x, times))
    assert len(states) == 10 and states[-1].t == 0
    assert (states[-1].x == 0.3).all()
    early = states[-2].x  # where the document stops
    assert round(states[-2].t.item() * T) - 1 == 0
    assert early.var().item() == pytest.approx(BETA[0].item(), rel=0.15) and BETA[0] > 0


def test_000_eq_38_euler_a_starts_at_sigma_0():
    """It starts at x ~ N(0, I) in coordinates where x = x_0 + s eps: there the deviation is s_0 = 157, and one move from unit noise
    leaves less than the next level's noise."""
    grid = Linspace(5)
    times = grid(LINEAR)
    alpha, sigma = LINEAR(times)
    s = sigma / alpha
    seen = []

    def denoise(x, t, cond=None):
        seen.append(x)
        return point(0.0)(x, t)

    denoise.schedule = LINEAR
    last(trajectories(denoise, EulerAncestral(), grid, (1, 100, 100), [0]))
    assert (seen[0].double() / alpha[0]).std().item() == pytest.approx(s[0].item(), rel=0.03) and s[0] > 150
    for start, right in ((s[0], True), (1.0, False)):
        x = alpha[0] * start * randn(20_000)
        moved = step(x, torch.zeros_like(x), times[0], times[1], LINEAR, eta=0.0) / alpha[1]
        assert (abs(moved.std() / s[1] - 1) < 0.03) == right


@pytest.mark.parametrize("log_sigma", [-8.0, 8.0])
def test_000_eq_60_62_times_of_sigmas_outside_the_table(log_sigma):
    """j is the largest i with L_i <= log sigma and w lies in [0, 1]: below the table there is no such i, and above it w > 1."""
    table = LINEAR.log_ratios()
    below = [i for i in range(T - 1) if table[i] <= log_sigma]
    if below:
        j = max(below)
        assert (table[j] - log_sigma) / (table[j] - table[j + 1]) > 1
    else:
        assert log_sigma < table[0]
    t = LINEAR.time(torch.tensor(-2 * log_sigma, **F64)).item()
    assert 0 <= t <= 1 and 0 <= LINEAR.label(torch.tensor(t)).item() <= T - 1


def test_000_eq_66_67_the_network_s_input():
    """DPM2 feeds it x, which of a VE path has the deviation sqrt(1 + sigma^2) for data of deviation 1, up to 50; it sees
    x/sqrt(1 + sigma^2), as in eq. 39, which is the variance-preserving path's own x_t."""
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, label, cond):
            seen.append(x)
            return x

    schedule, t = VE(), torch.tensor([0.3, 0.6, 1.0], **F64)
    x = randn(3, 20_000) * (1 + schedule(t)[1] ** 2).sqrt()[:, None]
    Denoiser(Network(), schedule, Epsilon())(x, t)
    assert x.std(1).max() > 49
    torch.testing.assert_close(seen[0].std(1), torch.ones(3, **F64), rtol=0.02, atol=0)
    alpha, sigma = LINEAR(LINEAR.time(schedule.log_snr(t)))  # the same sigma/alpha on the other path
    torch.testing.assert_close(seen[0], alpha[:, None] * x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sigma / alpha, schedule(t)[1], rtol=1e-9, atol=0)


def test_000_the_title_karras():
    """Eq. 49-53 is the ladder of even times; Karras's has even s^(1/7)."""
    linear, karras = Linspace(10, rounded=False)(LINEAR)[:-1], Karras(10)(LINEAR)[:-1]
    roots = [((sigma / alpha) ** (1 / 7)).diff() for alpha, sigma in (LINEAR(linear), LINEAR(karras))]
    even = torch.full((9,), 1 / 9, **F64)
    torch.testing.assert_close(linear.diff() / (linear[-1] - linear[0]), even, rtol=1e-9, atol=0)
    torch.testing.assert_close(roots[1] / roots[1].sum(), even, rtol=1e-7, atol=0)
    assert (roots[0] / roots[0].sum() - even).abs().max() > 0.05


# ---- 001


def test_001_forward_process_beta_T():
    """It ends at beta_T = 1e-2, "e.g."; DDPM's is 0.02, and with half of it 8 % of the image are left at t = T."""
    assert BETA[0].item() == pytest.approx(1e-4) and BETA[-1].item() == pytest.approx(0.02)
    signal = [Linear(beta_end=end)(torch.ones((), **F64))[0].item() for end in (0.02, 0.01)]
    assert signal[0] == pytest.approx(0.00635, abs=1e-5) and signal[1] == pytest.approx(0.08, abs=2e-3)


def test_001_cosine_unclipped():
    """beta_t = 1 - abar_t/abar_{t-1} is 1 at t = T, where abar = cos^2(pi/2) = 0: nothing is left to divide by. Clipped at 0.999."""
    f = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (T - 1, T)]
    assert 1 - f[1] / f[0] == pytest.approx(1, abs=1e-15)
    assert Cosine().betas()[-1] == 0.999 and Cosine()(torch.ones((), **F64))[0] > 4e-5


def test_001_alg_2_noise_at_the_last_step():
    """It draws z at every t; the sample would keep noise of deviation sigma_1."""
    torch.manual_seed(0)
    for variance in ("fixed_small", "fixed_large"):
        assert (last(DDPM(variance)(point(0.3), randn(500), Trailing(20)(LINEAR))).x == 0.3).all()
    _, _, large = posterior(ONE, ONE, time(1), time(0), LINEAR)
    assert large.sqrt() > 0.5 * 2 / 255  # with sigma^2 = beta, more than half an 8-bit level


def test_001_alg_2_the_root_under_the_fraction():
    """It has (1 - alpha_t)/sqrt(1 - alpha_t); it is (1 - alpha_t)/sqrt(1 - abar_t)."""
    i, (x0, eps) = 500, randn(2, 50)
    x_t = ABAR[i].sqrt() * x0 + (1 - ABAR[i]).sqrt() * eps
    beta = BETA[i - 1]
    right, printed = ((x_t - beta / root.sqrt() * eps) / (1 - beta).sqrt() for root in (1 - ABAR[i], beta))
    mean, _, _ = posterior(x_t, x0, time(i), time(i - 1), LINEAR)
    torch.testing.assert_close(mean, truth(x_t, x0, i, i - 1)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, right, rtol=1e-9, atol=1e-9)
    assert (printed - mean).abs().max() > 0.1


# ---- 002


def test_002_forward_variance():
    """N(sqrt(abar) x_0, sqrt(1 - abar) I) names a variance: it is 1 - abar, by running the chain. (001's kernel has the same slip.)"""
    x, i = torch.full((100_000,), 0.5, **F64), 50
    generator = torch.Generator().manual_seed(0)
    for beta in BETA[:i]:
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(len(x), generator=generator, **F64)
    alpha, sigma = LINEAR(time(i))
    assert x.var().item() == pytest.approx(sigma.item() ** 2, rel=0.03) and x.mean().item() == pytest.approx(0.5 * alpha.item(), rel=0.01)
    assert sigma.item() ** 2 == pytest.approx((1 - ABAR[i]).item(), rel=1e-12)
    assert (1 - ABAR[i]).sqrt() > 4 * x.var()


def test_002_upper_bound_variance():
    """It calls beta tilde the upper bound: it is the lower, beta the upper, at every step."""
    i = torch.arange(2, T + 1)
    x = torch.zeros(len(i), 1, **F64)
    _, small, large = posterior(x, x, i.double() / T, (i - 1).double() / T, LINEAR)
    tilde = (1 - ABAR[i - 1]) / (1 - ABAR[i]) * BETA[i - 1]
    torch.testing.assert_close(small.squeeze(), tilde, rtol=1e-9, atol=0)
    assert (small < large).all()


def test_002_learning_rate_scheduler():
    """Linear against cosine is the noise schedule's choice: it moves abar (0.08 against 0.49 half-way) and no learning rate."""
    halfway = [kind()(time(500))[0].item() ** 2 for kind in (Linear, Cosine)]
    assert halfway == pytest.approx([0.0786, 0.4938], abs=5e-4)
    assert issubclass(Cosine, Schedule) and not issubclass(lr_schedules.Cosine, Schedule)


# ---- 003


def test_003_after_eq_31_abar_at_T():
    """It says abar_t is almost 1 as t -> T; 1 - abar_T is."""
    assert ABAR[-1] < 5e-5 and LINEAR(time(T))[0] ** 2 < 5e-5 and LINEAR(time(T))[1] > 0.9999


def test_003_eq_26_kl_of_two_gaussians():
    """It holds for q = N(0, I) only; the bound's q is not."""
    mu, root = randn(3), randn(3, 3)
    covariance = root @ root.T + torch.eye(3, **F64)
    p = MultivariateNormal(mu, covariance)
    printed = 0.5 * (mu @ mu + covariance.trace() - 3 - covariance.logdet())
    standard = MultivariateNormal(torch.zeros(3, **F64), torch.eye(3, **F64))
    other = MultivariateNormal(torch.ones(3, **F64), 0.25 * torch.eye(3, **F64))
    assert kl_divergence(p, standard).item() == pytest.approx(printed.item(), rel=1e-12)
    assert abs(kl_divergence(p, other) - printed) > 1


def test_003_eq_28_29_31_the_factor_before_the_bracket():
    """They have 1/sqrt(abar_t) (x_t - ...); it is 1/sqrt(alpha_t). The same test as the code's mean at every step."""
    x0, eps = randn(2, 50)
    for i in (2, 100, 500, 1000):
        x_t = ABAR[i].sqrt() * x0 + (1 - ABAR[i]).sqrt() * eps
        bracket = x_t - BETA[i - 1] / (1 - ABAR[i]).sqrt() * eps
        mean, _, _ = posterior(x_t, x0, time(i), time(i - 1), LINEAR)
        torch.testing.assert_close(mean, truth(x_t, x0, i, i - 1)[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(mean, bracket / (1 - BETA[i - 1]).sqrt(), rtol=1e-8, atol=1e-8)
        assert ((bracket / ABAR[i].sqrt() - mean).abs().max() > 1e-2) == (i > 2)


MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2], [0.8, 0.5], [0.1, -0.9]]),
    torch.tensor([0.4, 0.6, 0.5]),
    torch.tensor([0.2, 0.5, 0.3]),
    LINEAR,
    classes=torch.tensor([0, 1, 1]),
)
LABEL = torch.ones(20, dtype=torch.long)
LOG_WEIGHTS = torch.tensor([0.2, 0.8], **F64).log()  # of the classes


def gradient(f, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def log_posterior(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """log p(c | x_t) up to a constant, by Bayes' rule."""
    return MIXTURE.log_prob(x, t, LABEL) - MIXTURE.log_prob(x, t)


def test_003_eq_36_gradients_of_log_p():
    """It subtracts nabla p(x); the score of p(x) p(c|x)^w is made of nabla log p."""
    x, t, w = randn(20, 2), time(300), 2.0
    target = gradient(lambda x: MIXTURE.log_prob(x, t) + w * log_posterior(x, t), x)
    scores = MIXTURE.score(x, t), MIXTURE.score(x, t, LABEL)
    torch.testing.assert_close(target, scores[0] + w * (scores[1] - scores[0]), rtol=1e-9, atol=1e-9)
    plain = [gradient(lambda x, c=c: MIXTURE.log_prob(x, t, c).exp(), x) for c in (None, LABEL)]
    assert (scores[0] + w * (plain[1] - plain[0]) - target).abs().max() > 0.1


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_003_eq_35_37_the_scale_and_the_weight(w):
    """Maximising p(x) p(c|x)^w is scale s = w; (1 + w) eps(c) - w eps, eq. 37, is s = 1 + w, and comes from p(x|c) p(c|x)^w."""
    x, t = randn(20, 2), time(300)
    _, sigma = LINEAR(t)
    eq_35 = -sigma * gradient(lambda x: MIXTURE.log_prob(x, t) + w * log_posterior(x, t), x)
    from_c = -sigma * gradient(lambda x: MIXTURE.log_prob(x, t, LABEL) + w * log_posterior(x, t), x)
    eq_37 = (1 + w) * MIXTURE(x, t, LABEL).eps - w * MIXTURE(x, t).eps
    torch.testing.assert_close(ClassifierFree(MIXTURE, w)(x, t, LABEL).eps, eq_35, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ClassifierFree(MIXTURE, 1 + w)(x, t, LABEL).eps, eq_37, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(from_c, eq_37, rtol=1e-9, atol=1e-9)
    assert (eq_35 - eq_37).abs().max() > 0.05


def test_003_sec_4_2_4_4_the_deviation_of_ddim():
    """eta sqrt((1 - abar_{t-1})/(1 - abar_t)) sqrt(1 - abar_t) is all the noise there is at t - 1, and its eta = 1 is not DDPM; the last
    factor is sqrt(1 - abar_t/abar_{t-1})."""
    zero = torch.zeros(1, **F64)
    for i, j in ((500, 499), (500, 400), (2, 1)):
        deviation = step(zero, zero, time(i), time(j), LINEAR, 1.0, torch.ones_like).item()
        now, then = ABAR[i], ABAR[j]
        assert deviation == pytest.approx(math.sqrt(truth(zero, zero, i, j)[1]), rel=1e-9)
        assert deviation == pytest.approx(((1 - then) / (1 - now) * (1 - now / then)).sqrt().item(), rel=1e-9)
        printed = ((1 - then) / (1 - now)).sqrt() * (1 - now).sqrt()
        assert printed.item() == pytest.approx((1 - then).sqrt().item()) and printed > 1.2 * deviation
        half = step(zero, zero, time(i), time(j), LINEAR, 0.5, torch.ones_like).item()
        assert half == pytest.approx(deviation / 2, rel=1e-12)


def test_003_eq_49_a_sub_sequence_of_ddim():
    """sqrt(abar_i/abar_j) before x_0 and sqrt(1 - abar_i/abar_j - sigma^2) before eps leave the path; sqrt(abar_j) and
    sqrt(1 - abar_j - sigma^2) land on it."""
    i, j, (x0, eps) = 800, 600, randn(2, 50)
    now, then = ABAR[i], ABAR[j]
    x_t, x_s = (a.sqrt() * x0 + (1 - a).sqrt() * eps for a in (now, then))
    torch.testing.assert_close(step(x_t, x0, time(i), time(j), LINEAR), x_s, rtol=1e-12, atol=1e-12)
    printed = (now / then).sqrt() * x0 + (1 - now / then).sqrt() * eps
    assert (printed - x_s).abs().max() > 0.1
    states = list(DDIM()(point(0.3), ABAR[1000].sqrt() * 0.3 + (1 - ABAR[1000]).sqrt() * eps, Trailing(5)(LINEAR)))
    for state in states[:-1]:
        a = ABAR[round(state.t.item() * T)]
        torch.testing.assert_close(state.x, a.sqrt() * 0.3 + (1 - a).sqrt() * eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_003_eq_33_which_sigma(w):
    """eps - w sigma_t grad log p(c|x_t) has the noise level sigma_t = sqrt(1 - abar_t); with the reverse step's sigma_t, eq. 27's
    sqrt(beta tilde), it is not the eps of p(x) p(c|x)^w."""
    x, i = randn(20, 2), 300
    pull = gradient(lambda x: log_posterior(x, time(i)), x)
    right = MIXTURE(x, time(i)).eps - w * (1 - ABAR[i]).sqrt() * pull
    tilted = -LINEAR(time(i))[1] * gradient(lambda x: MIXTURE.log_prob(x, time(i)) + w * log_posterior(x, time(i)), x)
    torch.testing.assert_close(right, tilted, rtol=1e-9, atol=1e-9)

    class Bayes:
        """The exact classifier, as guidance calls one: logits of classes 0 and 1."""

        schedule = LINEAR

        def __call__(self, x, label):
            t = (label[0].double() + 1) / T
            return torch.stack([MIXTURE.log_prob(x, t, torch.full((len(x),), c)) + LOG_WEIGHTS[c] for c in (0, 1)], 1)

    plain = Unconditional(MIXTURE)
    torch.testing.assert_close(Classifier(plain, Bayes(), w)(x, time(i), LABEL).eps, tilted, rtol=1e-6, atol=1e-6)
    tilde = (1 - ABAR[i - 1]) / (1 - ABAR[i]) * BETA[i - 1]
    assert (MIXTURE(x, time(i)).eps - w * tilde.sqrt() * pull - tilted).abs().max() > 0.1
