"""Stochastic samplers against the truth: exact samples of a Gaussian mixture, and the exact variance of a Gaussian."""

from dataclasses import replace
from functools import partial
from math import log2

import pytest
import torch

from diffusion import samplers
from diffusion.grids import Trailing
from diffusion.noise import SeededNoise
from diffusion.oracles import GaussianMixture
from diffusion.samplers import (
    DDPM,
    DPMPP2MSDE,
    DPMPP3MSDE,
    DPMPPSDE,
    DPM2Ancestral,
    DPMPP2SAncestral,
    EulerAncestral,
    Langevin,
    PredictorCorrector,
    last,
)
from diffusion.samplers import stochastic as module
from diffusion.schedules import VE, Cosine, Flow, Linear

N, STEPS = 2000, 60
ALL = [
    DDPM(),
    EulerAncestral(),
    DPM2Ancestral(),
    DPMPP2SAncestral(),
    DPMPPSDE(),
    DPMPP2MSDE(),
    DPMPP2MSDE(eta=0.5),
    DPMPP3MSDE(),
    Langevin(walk=20),
    PredictorCorrector(DDPM("fixed_small"), snr=0.1),
]
names = lambda sampler: type(sampler).__name__  # noqa: E731


def mixture(schedule, dims=2):
    means = torch.nn.functional.pad(torch.tensor([[1.2, -0.6], [-0.9, 0.3], [0.2, 1.1]]), (0, dims - 2))
    return GaussianMixture(means, torch.tensor([0.3, 0.4, 0.25]), torch.tensor([0.5, 0.3, 0.2]), schedule)


def dims(sampler):
    """Few, where moments say most; many for the corrector, whose norms are to stand for sqrt(d): at 2 they often are near 0."""
    return 48 if isinstance(sampler, PredictorCorrector) else 2


def draw(sampler, denoise, n=N, steps=STEPS, seed=0):
    torch.manual_seed(seed)
    times = Trailing(steps)(denoise.schedule)
    x = denoise.schedule(times[0])[1] * torch.randn(n, *denoise.means.shape[1:], dtype=torch.float64)
    return last(sampler(denoise, x, times)).x


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013), 0 for equal distributions."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


@pytest.fixture(scope="module")
def truth():
    """Exact samples, and the largest of 50 energy distances between two exact sets of this size: p about 0.02."""

    def of(size):
        exact = partial(mixture(Cosine(), size).sample, generator=torch.Generator().manual_seed(1))
        return exact(N), max(energy_distance(exact(N), exact(N)) for _ in range(50))

    return {2: of(2), 48: of(48)}


@pytest.mark.parametrize("sampler", ALL, ids=names)
@pytest.mark.parametrize("schedule", [Cosine(), VE(sigma_min=0.03, sigma_max=20.0), Flow()], ids=lambda s: type(s).__name__)
def test_samples_are_exact_samples(sampler, schedule, truth):
    """Moments within 4.5 standard errors and a share for 60 steps' bias; and the two-sample test."""
    exact, threshold = truth[dims(sampler)]
    denoise = mixture(schedule, dims(sampler))
    x, reference = draw(sampler, denoise), denoise.sample(40_000)
    assert x.isfinite().all()
    assert ((x.mean(0) - reference.mean(0)).abs() < 4.5 * reference.std(0) / N**0.5 + 0.03).all()
    assert ((x.var(0) / reference.var(0) - 1).abs() < 4.5 * (2 / N) ** 0.5 + 0.05).all()
    assert energy_distance(x, exact) < 1.3 * threshold


@pytest.mark.parametrize("broken", [replace(DPMPP2MSDE(), s_noise=0.7), replace(DPM2Ancestral(), s_noise=1.4)], ids=names)
def test_the_two_sample_test_can_fail(broken, truth):
    exact, threshold = truth[2]
    assert energy_distance(draw(broken, mixture(Cosine())), exact) > 1.3 * threshold


def variance_error(sampler, steps):
    """Relative error of the variance at t = 0.1 of a Gaussian followed from t = 0.95, with no Monte Carlo in it.

    The denoiser of a Gaussian is linear, so the result is a linear form in x and the noises drawn: row j of the batch carries the j-th
    unit vector of these, and the variance is the sum of the squared coefficients."""
    schedule, std = Cosine(), 0.5
    denoise = GaussianMixture(torch.zeros(1, 1), torch.tensor([std]), None, schedule)
    ends = torch.tensor([0.95, 0.1], dtype=torch.float64)
    low, high = schedule.log_snr(ends).tolist()
    times = schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    alpha, sigma = schedule(times[[0, -1]])
    start, end = (alpha**2 * std**2 + sigma**2).tolist()
    x, drawn = torch.zeros(2 * steps + 1, 1, dtype=torch.float64), iter(torch.eye(2 * steps + 1, dtype=torch.float64)[1:])
    x[0] = start**0.5
    return abs(last(sampler(denoise, x, times, lambda _: next(drawn)[:, None])).x.square().sum().item() / end - 1)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(EulerAncestral(), 1), (DPM2Ancestral(), 2), (DPMPP2SAncestral(), 2), (DPMPPSDE(), 2), (DPMPP2MSDE(), 2), (DPMPP3MSDE(), 2)],
    ids=str,
)
def test_weak_order(sampler, order):
    """The error of the variance falls as h^order. (3M's first step is Euler's, whose local error h^2 stays: from noise, where x_0 hardly
    moves, it is not seen; see test_third_order_on_the_ode.)"""
    errors = [variance_error(sampler, steps) for steps in (80, 160, 320)]
    assert log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25), errors


def test_second_weak_order_needs_the_path(monkeypatch):
    """With independent noises for t -> m and t -> s, DPMPPSDE is a first-order method."""
    monkeypatch.setattr(module, "correlation", lambda *_: torch.zeros((), dtype=torch.float64))
    assert log2(variance_error(DPMPPSDE(), 160) / variance_error(DPMPPSDE(), 320)) == pytest.approx(1, abs=0.25)


class DividedDifference(DPMPP3MSDE):
    """k-diffusion's and diffusers' 3M: half the second derivative."""

    def extrapolate(self, h, past):
        if len(past) < 3:
            return super().extrapolate(h, past)
        (now, _), (before, h1), (long_ago, h2) = past
        total = (1 + self.eta) * h
        phi1 = -torch.expm1(-total)
        bend = ((now - before) * h / h1 - (before - long_ago) * h / h2) * h / (h1 + h2)
        return super().extrapolate(h, past) + ((total - phi1) / total**2 - 0.5) * bend / phi1


@pytest.mark.parametrize(("sampler", "order"), [(DPMPP2MSDE(0), 2), (DPMPP3MSDE(0), 3), (DividedDifference(0), 2)], ids=names)
def test_third_order_on_the_ode(sampler, order):
    """eta = 0, from near pure noise. The solver that other projects call 3M has slope 2."""
    denoise, schedule = mixture(Cosine()), Cosine()
    ends = schedule.log_snr(torch.tensor([0.999, 0.1], dtype=torch.float64)).tolist()
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(sampler, steps):
        times = schedule.time(torch.linspace(*ends, steps + 1, dtype=torch.float64))
        return last(sampler(denoise, x, times, torch.zeros_like)).x

    exact = end(DPMPP3MSDE(0), 2000)
    errors = [(end(sampler, steps) - exact).norm().item() for steps in (80, 160, 320)]
    assert log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25), errors


@pytest.mark.parametrize("sampler", [*ALL, PredictorCorrector(), Langevin(walk=2)], ids=names)
@pytest.mark.parametrize("schedule", [Cosine(), Flow(), Linear(zero_terminal_snr=True)], ids=lambda s: type(s).__name__)
def test_64_at_once_are_64_of_one(sampler, schedule):
    """And finite from alpha(1) = 0, ending exactly at t = 0."""
    denoise, times = mixture(schedule), Trailing(6)(schedule)

    def run(seeds):
        noise = SeededNoise(seeds, "cpu")
        return last(sampler(denoise, noise(torch.empty(len(seeds), 2, dtype=torch.float64)), times, noise))

    together, apart = run(range(64)), torch.cat([run([seed]).x for seed in range(64)])
    assert together.t == 0
    assert together.x.isfinite().all()
    torch.testing.assert_close(together.x, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", ALL, ids=names)
def test_two_interleaved_runs_are_two_runs(sampler):
    denoise, times = mixture(Cosine()), Trailing(5)(Cosine())
    starts = torch.randn(2, 3, 2, dtype=torch.float64)
    run = lambda i: sampler(denoise, starts[i], times, SeededNoise([i, 5, 9], "cpu"))  # noqa: E731
    pairs = list(zip(run(0), run(1), strict=True))
    for i in (0, 1):
        alone = list(run(i))
        assert all(torch.equal(pair[i].x, state.x) for pair, state in zip(pairs, alone, strict=True))


@pytest.mark.parametrize("name", [n for n in samplers.__all__ if n not in ("State", "last")])
def test_each_is_constructible_and_frozen(name):
    sampler = getattr(samplers, name)()
    with pytest.raises(AttributeError):
        sampler.eta = 0.5


def test_annealing_recovers_the_weights_of_modes():
    """NCSN fig. 3: modes far apart, 0.8 and 0.2. A walk at the last noise level alone stays in the mode nearest its start; with the
    levels from 20 down, the samples know the weights. Standard error of the share: 0.01."""
    schedule = VE(num_timesteps=10, sigma_min=0.1, sigma_max=20.0)
    denoise = GaussianMixture(torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), torch.tensor([1.0, 1.0]), torch.tensor([0.8, 0.2]), schedule)
    torch.manual_seed(0)
    start = 20 * torch.randn(1600, 2, dtype=torch.float64)
    annealed = last(Langevin(walk=100, ratio=0.2)(denoise, start, torch.arange(10, -1, -1, dtype=torch.float64) / 10)).x
    plain = last(Langevin(walk=1000, ratio=0.2)(denoise, start, torch.tensor([0.1, 0.0], dtype=torch.float64))).x
    share = lambda x: (x.sum(1) > 0).double().mean().item()  # noqa: E731
    assert share(annealed) == pytest.approx(0.8, abs=0.04)
    assert share(plain) < 0.6


def test_corrections_help_a_poor_predictor():
    """A predictor that adds too little noise: the corrector brings the variance nearer to the truth."""
    denoise = mixture(Cosine(), 48)
    want = denoise.sample(40_000).var(0)
    poor = DPMPP2MSDE(s_noise=0.7)
    gaps = [(draw(s, denoise).var(0) / want - 1).abs().max() for s in (poor, PredictorCorrector(poor, snr=0.16, corrections=2))]
    assert gaps[1] < gaps[0] / 2, gaps


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: DPM2Ancestral(eta=1.5), "eta"),
        (lambda: DPMPP2MSDE(eta=-1), "eta"),
        (lambda: Langevin(ratio=4.0), "ratio"),
        (lambda: Langevin(walk=0), "walk"),
    ],
)
def test_bad_settings_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()
