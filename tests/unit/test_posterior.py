"""Moves between noise levels, against the product of two Gaussians and against the samplers' own published formulas."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diffusion.denoiser import Estimate
from diffusion.grids import Leading, Linspace, Trailing
from diffusion.oracles import GaussianMixture
from diffusion.posterior import posterior, step
from diffusion.samplers import DDIM, DDPM, Euler, EulerAncestral, last
from diffusion.schedules import VE, Cosine, Flow, Linear

F64 = {"dtype": torch.float64}
SCHEDULES = [Linear(), Cosine(), VE(), Flow(), Flow(shift=3.0), Linear(zero_terminal_snr=True)]
TIMES = [(1.0, 0.9), (1.0, 0.1), (0.999, 0.5), (0.731, 0.7305), (0.5, 0.01), (0.02, 0.001), (0.01, 0.0003)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


class Same:
    """The same sequence of noises for whoever asks in the same order; it counts."""

    def __init__(self, seed: int = 1):
        self.generator, self.calls = torch.Generator().manual_seed(seed), 0

    def __call__(self, x):
        self.calls += 1
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def mixture(schedule) -> GaussianMixture:
    return GaussianMixture(torch.tensor([[-1.5, 0.5], [1.0, -0.25], [0.3, 2.0]]), torch.tensor([0.3, 0.5, 0.1]), schedule=schedule)


def start(schedule, grid) -> tuple[torch.Tensor, torch.Tensor]:
    times = grid(schedule)
    return schedule(times[0])[1] * randn(16, 2), times


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("t", "s"), TIMES)
def test_posterior_is_the_product_of_prior_and_likelihood(schedule, t, s):
    """q(x_s | x_t, x_0) is proportional to N(x_s; alpha_s x_0, sigma_s^2) N(x_t; a x_s, b2): precisions add."""
    t, s = torch.tensor(t, **F64), torch.tensor(s, **F64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    a = alpha_t / alpha_s
    b2 = sigma_t**2 - a**2 * sigma_s**2
    x0, x_t = randn(2, 5, 3)
    precision = 1 / sigma_s**2 + a**2 / b2
    mean, small, large = posterior(x_t, x0, t, s, schedule)
    torch.testing.assert_close(mean, (alpha_s * x0 / sigma_s**2 + a * x_t / b2) / precision, rtol=1e-9, atol=1e-9)
    assert small.item() == pytest.approx(1 / precision.item(), rel=1e-9)
    assert large.item() == pytest.approx(b2.item(), rel=1e-9)


@pytest.mark.parametrize("schedule", [Cosine(), VE(sigma_max=3.0), Flow()], ids=repr)
def test_posterior_by_simulation(schedule):
    """Draw x_s from x_0 and x_t from x_s; the regression of x_s on x_t, and what is left over, are the posterior."""
    t, s, x0, n = torch.tensor(0.6, **F64), torch.tensor(0.4, **F64), 0.7, 400_000
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    a, z = alpha_t / alpha_s, randn(2, n)
    x_s = alpha_s * x0 + sigma_s * z[0]
    x_t = a * x_s + (sigma_t**2 - a**2 * sigma_s**2).sqrt() * z[1]
    mean, small, _ = posterior(x_t, torch.full_like(x_t, x0), t, s, schedule)
    left, five = x_s - mean, 5 / n**0.5
    assert abs(left.mean() / small.sqrt()) < five and abs(left.var() / small - 1) < five * 2**0.5
    assert abs((left * (x_t - x_t.mean())).mean() / (small.sqrt() * x_t.std())) < five


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(100)], ids=repr)
def test_neighbours_have_ddpm_s_formulas(schedule):
    """DDPM eq. 6, 7 in betas; abar_0 = 1 before the first step (trap 7)."""
    T = schedule.num_timesteps
    beta = schedule.betas()
    abar = torch.cat([torch.ones(1, **F64), (1 - beta).cumprod(0)])
    steps = torch.arange(1, T + 1)
    x0, x_t = randn(2, T, 3)
    mean, small, large = posterior(x_t, x0, steps.double() / T, (steps - 1).double() / T, schedule)
    now, before, beta = abar[steps, None], abar[steps - 1, None], beta[:, None]
    torch.testing.assert_close(mean, (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - now), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(small, (1 - before) / (1 - now) * beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(large, beta, rtol=1e-9, atol=0)
    assert small[0] == 0 and torch.equal(mean[0], x0[0])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("t", "s"), TIMES)
def test_step_with_eta_1_draws_from_the_posterior(schedule, t, s):
    t, s = torch.tensor(t, **F64), torch.tensor(s, **F64)
    x0, x_t, z = randn(3, 5, 3)
    mean, small, _ = posterior(x_t, x0, t, s, schedule)
    torch.testing.assert_close(step(x_t, x0, t, s, schedule, 1.0, torch.zeros_like), mean, rtol=1e-10, atol=1e-10)
    moved = step(x_t, x0, t, s, schedule, 1.0, lambda x: z) - mean
    torch.testing.assert_close(moved, small.sqrt() * z, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("t", "s"), [*TIMES, (0.7, 0.0), (1.0, 0.0)])
def test_step_with_eta_0_stays_on_the_path(schedule, t, s):
    """Trap 38: an exact pair (x_0, eps) lands on alpha_s x_0 + sigma_s eps."""
    t, s = torch.tensor(t, **F64), torch.tensor(s, **F64)
    x0, eps = randn(2, 5, 3)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    moved = step(alpha_t * x0 + sigma_t * eps, x0, t, s, schedule)
    torch.testing.assert_close(moved, alpha_s * x0 + sigma_s * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_step_keeps_the_marginal_for_any_eta(schedule, eta):
    """DDIM's point: std^2 + (coefficient of eps)^2 = sigma_s^2, so x_s ~ N(alpha_s x_0, sigma_s^2) when x_t is on its marginal."""
    for t, s in TIMES:
        t, s = torch.tensor(t, **F64), torch.tensor(s, **F64)
        (_, sigma_t), (_, sigma_s) = schedule(t), schedule(s)
        zero, one = torch.zeros(1, **F64), torch.ones(1, **F64)
        along = step(sigma_t * one, zero, t, s, schedule, eta, torch.zeros_like)
        fresh = step(zero, zero, t, s, schedule, eta, torch.ones_like)
        assert (along**2 + fresh**2).item() == pytest.approx(sigma_s.item() ** 2, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_last_step_is_x0_and_draws_no_noise(schedule, eta):
    """Trap 14."""
    noise, (x0, x_t) = Same(), randn(2, 5, 3)
    assert torch.equal(step(x_t, x0, torch.tensor(0.01, **F64), torch.tensor(0.0, **F64), schedule, eta, noise), x0)
    assert noise.calls == 0


@pytest.mark.parametrize("schedule", [Flow(), Linear(zero_terminal_snr=True), Cosine(zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moves_from_pure_noise_are_finite(schedule, eta):
    one, s = torch.ones((), **F64), torch.tensor(0.8, **F64)
    x_t, x0 = randn(2, 5, 3)
    mean, small, large = posterior(x_t, x0, one, s, schedule)
    alpha_s, sigma_s = schedule(s)
    torch.testing.assert_close(mean, alpha_s * x0)  # x_t says nothing of x_s
    assert small == sigma_s**2 and large == 1
    assert step(x_t, x0, one, s, schedule, eta).isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_times_may_differ_within_a_batch(schedule):
    x_t, x0 = randn(2, len(TIMES), 3, 4, 4)
    t, s = torch.tensor(TIMES, **F64).T
    together = posterior(x_t, x0, t, s, schedule)
    for i in range(len(TIMES)):
        for all_, one in zip(together, posterior(x_t[i : i + 1], x0[i : i + 1], t[i], s[i], schedule), strict=True):
            torch.testing.assert_close(all_[i].squeeze(), one.squeeze(), rtol=1e-14, atol=1e-14)


GRIDS = [Trailing(1), Trailing(7), Leading(13), Linspace(10, rounded=False)]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_ddpm_with_the_small_variance_is_ddim_with_eta_1(schedule, grid):
    x, times = start(schedule, grid)
    noises = Same(), Same()
    ways = [sampler(mixture(schedule), x, times, noise) for sampler, noise in zip((DDPM("fixed_small"), DDIM(1.0)), noises, strict=True)]
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)
        assert ours.t == theirs.t
    assert noises[0].calls == noises[1].calls == len(times) - 2
    assert torch.equal(theirs.x, theirs.x0)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("sampler", "eta"), [(Euler(), 0.0), (EulerAncestral(), 1.0)], ids=["Euler", "EulerAncestral"])
def test_euler_is_euler_s_method_in_ratio_coordinates(schedule, grid, sampler, eta):
    """x' = x + (down - s) e + up z for x = x_0 + s e, s = sigma/alpha; up^2 = s'^2 (s^2 - s'^2)/s^2, down^2 = s'^2 - up^2 (k-diffusion).

    Where alpha = 0, s is infinite and x has no such coordinates: there the first move is taken as given."""
    denoise, noise = mixture(schedule), Same()
    x, times = start(schedule, grid)
    states = list(sampler(denoise, x, times, Same()))
    ddim = list(DDIM(eta)(denoise, x, times, Same()))
    for state, (t, s) in zip(states, pairwise(times), strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        eps = denoise(x, t).eps
        z = noise(x) if eta and s > 0 else torch.zeros_like(x)
        if alpha_t > 0:
            now, then = sigma_t / alpha_t, sigma_s / alpha_s
            up = eta * (then**2 * (now**2 - then**2) / now**2).sqrt()
            moved = alpha_s * (x / alpha_t + ((then**2 - up**2).sqrt() - now) * eps + up * z)
            torch.testing.assert_close(state.x, moved, rtol=1e-7 if schedule.reaches_noise else 1e-9, atol=1e-9)
        x = state.x
    for ours, theirs in zip(states, ddim, strict=True):
        assert torch.equal(ours.x, theirs.x)


@pytest.mark.parametrize("grid", [Trailing(7), Leading(10), Linspace(5)], ids=repr)
@pytest.mark.parametrize(("variance", "pick"), [("fixed_small", 0), ("fixed_large", 1), ("learned", 0.3), ("auto", 0.3)])
def test_a_sub_sequence_has_variances_of_its_own(grid, variance, pick):
    """Trap 13, 000 eq. 21: beta of the sub-sequence is 1 - abar_now/abar_next, in the posterior and in its noise."""
    schedule, times = Linear(), grid(Linear())
    abar = np.concatenate([[1.0], np.cumprod(1 - schedule.betas().numpy())])
    x0, x = 0.25, torch.zeros(1, 1, **F64)

    def denoise(x, t):
        assert t in times
        return Estimate(torch.full_like(x, x0), x, torch.full_like(x, 0.3) if pick == 0.3 else None)

    denoise.schedule = schedule
    for noise in (torch.zeros_like, torch.ones_like):
        value = 0.0
        for state, (t, s) in zip(DDPM(variance)(denoise, x, times, noise), pairwise(times), strict=True):
            now, then = abar[round(t.item() * 1000)], abar[round(s.item() * 1000)]
            beta = 1 - now / then
            small = (1 - then) / (1 - now) * beta
            value = then**0.5 * beta / (1 - now) * x0 + (now / then) ** 0.5 * (1 - then) / (1 - now) * value
            if s > 0 and noise is torch.ones_like:
                value += np.exp(0.5 * (pick * np.log(beta) + (1 - pick) * np.log(small)))
            assert state.x.item() == pytest.approx(value, rel=1e-9)


def test_every_step_of_ddpm_samples_the_data():
    """The chain as a whole: 60 exact steps bring N(0, 1) to the mixture (moments within 5 standard errors of 4,000 samples)."""
    schedule = Cosine(60)
    data = GaussianMixture(torch.tensor([[-0.8], [0.6]]), torch.tensor([0.1, 0.3]), torch.tensor([0.3, 0.7]), schedule=schedule)
    x = last(DDPM()(data, randn(4000, 1), Trailing(60)(schedule), Same())).x
    truth = data.sample(200_000, generator=torch.Generator().manual_seed(3))
    for f in (lambda v: v, lambda v: v**2, lambda v: (v < 0).double()):
        assert abs(f(x).mean() - f(truth).mean()) < 5 * f(truth).std() / 4000**0.5


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"sampler.variance=huge is not one of fixed_small, fixed_large, learned, auto"):
        DDPM("huge")
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"eta=.* of DDIM must be between 0 and 1"):
            DDIM(eta)
    with pytest.raises(TypeError, match="etta"):
        DDIM(etta=1.0)
    denoise = mixture(Cosine())
    with pytest.raises(ValueError, match="needs a denoiser with a learned variance"):
        last(DDPM("learned")(denoise, randn(2, 2), Trailing(3)(Cosine())))
