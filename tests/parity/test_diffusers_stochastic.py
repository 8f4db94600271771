"""diffusers' stochastic schedulers, step by step: same network, same noise. They keep their tables in float32, hence 1e-4.

Their tables are replaced by ours in float64 before they are cut into steps, so that only their own arithmetic differs."""

from itertools import pairwise

import pytest
import torch

from diffusion.grids import Linspace
from diffusion.oracles import GaussianMixture
from diffusion.posterior import step
from diffusion.samplers import DDPM, DPMPP2MSDE, DPMPP3MSDE, DPMPPSDE, DPM2Ancestral, EulerAncestral, PredictorCorrector
from diffusion.samplers.stochastic import correlation, gap
from diffusion.schedules import VE, Linear

diffusers = pytest.importorskip("diffusers")
SCHEDULE, STEPS, T = Linear(), 10, 1000
TIMES = Linspace(STEPS)(SCHEDULE)  # 999, 888, ..., 0: whole steps, between which theirs and ours interpolate differently


@pytest.fixture
def draws():
    return torch.randn(40, 4, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def mixture(schedule=SCHEDULE):
    means = torch.tensor([[[[0.9, -0.4]]], [[[-0.7, 0.2]]], [[[0.1, 0.8]]]])
    return GaussianMixture(means, torch.tensor([0.2, 0.35, 0.1]), torch.tensor([0.5, 0.3, 0.2]), schedule)


def run(scheduler, x, native, **options):
    """Their samples after each call of `step`; `native`: whether they keep x in native coordinates or x/alpha."""
    denoise, states = mixture(), []
    scheduler.alphas_cumprod = SCHEDULE(torch.arange(1, T + 1, dtype=torch.float64) / T)[0] ** 2
    if native:  # the multistep solver keeps tables of its own
        scheduler.alpha_t, scheduler.sigma_t = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    else:
        x = x / SCHEDULE(TIMES[0])[0]
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(denoise(model_input, (timestep.double() + 1) / T).eps, timestep, x, **options).prev_sample
        states.append(x)
    return states


def ours(sampler, x, draws, times=TIMES):
    noise = iter(draws)
    return [state.x for state in sampler(mixture(), x, times, lambda _: next(noise))]


def compare(mine, theirs, native):
    alphas = torch.ones(STEPS) if native else SCHEDULE(TIMES[1:])[0]
    assert len(mine) == len(theirs) == STEPS
    for a, b, alpha in zip(mine, theirs, alphas, strict=True):
        torch.testing.assert_close(a, alpha * b.double(), rtol=1e-4, atol=1e-4)


def patch(monkeypatch, module, values):
    values = iter(values)
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *a, **k: next(values))


def test_euler_ancestral(draws, monkeypatch):
    patch(monkeypatch, "scheduling_euler_ancestral_discrete", draws)
    theirs = run(diffusers.EulerAncestralDiscreteScheduler(), draws[-1], native=False)
    compare(ours(EulerAncestral(), draws[-1], draws), theirs, native=False)


def test_dpm2_ancestral(draws, monkeypatch):
    """Theirs is called twice a step: its states are every second call's."""
    patch(monkeypatch, "scheduling_k_dpm_2_ancestral_discrete", draws)
    theirs = run(diffusers.KDPM2AncestralDiscreteScheduler(timestep_spacing="linspace"), draws[-1], native=False)
    compare(ours(DPM2Ancestral(), draws[-1], draws), [*theirs[1::2], theirs[-1]], native=False)


def test_dpmpp_sde(draws):
    scheduler = diffusers.DPMSolverSDEScheduler(timestep_spacing="linspace")
    noise = iter(combined(draws))
    scheduler.set_timesteps(STEPS)
    original = scheduler.set_timesteps

    def keep_noise(steps):  # theirs forgets its noise sampler whenever it is cut into steps
        original(steps)
        scheduler.noise_sampler = lambda *_: next(noise)

    scheduler.set_timesteps = keep_noise
    theirs = run(scheduler, draws[-1], native=False)
    compare(ours(DPMPPSDE(), draws[-1], draws), [*theirs[1::2], theirs[-1]], native=False)


def combined(draws):
    draws = iter(draws)
    for t, s in pairwise(TIMES[:-1]):
        middle = SCHEDULE.time((SCHEDULE.log_snr(t) + SCHEDULE.log_snr(s)) / 2)
        z1, z2, rho = next(draws), next(draws), correlation(t, middle, s, SCHEDULE)
        yield z1
        yield rho * z1 + (1 - rho**2).sqrt() * z2


def multistep(order, draws):
    """(their states, their times with 0). Their "linspace" is another here: 999, 899.1, ... rounded, without 0."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=order, timestep_spacing="linspace", lower_order_final=False
    )
    values, step = iter(draws), scheduler.step
    scheduler.step = lambda *a: step(*a, variance_noise=next(values))
    states = run(scheduler, draws[-1] * SCHEDULE(TIMES[0])[1], native=True)
    return states, torch.cat([(scheduler.timesteps.double() + 1) / T, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize(("order", "sampler"), [(1, EulerAncestral()), (2, DPMPP2MSDE())])
def test_sde_dpmsolverpp_multistep(order, sampler, draws):
    theirs, times = multistep(order, draws)
    compare(ours(sampler, draws[-1] * SCHEDULE(TIMES[0])[1], draws, times), theirs, native=True)


def test_sde_dpmsolverpp_third_order(draws):
    """Their second step, when only two estimates are there, is the midpoint form of 2M; ours, as k-diffusion's, the exponential one with
    phi_2, equal to second order. So each later step is compared from their own state before it.

    Theirs is wrong in the second derivative's term: (1 - e^-H - H)/H^2 - 1/2 times the second divided difference, where the expansion
    has -2 phi_3 = 2 (1 - e^-H - H)/H^2 + 1. The sign of the half makes it -1 and not 0 as H goes to 0. The difference is taken out here."""
    theirs, times = multistep(3, draws)
    before, denoise, sampler = [draws[-1] * SCHEDULE(TIMES[0])[1], *theirs], mixture(), DPMPP3MSDE()
    past = [(denoise(x, t).x0, gap(t, s, SCHEDULE)) for x, t, s in zip(before[:-1], times[:-1], times[1:], strict=True)]
    for i in range(2, STEPS - 1):
        effective = sampler.extrapolate(past[i][1], [past[i], past[i - 1], past[i - 2]])
        h, h1, h2 = past[i][1], past[i - 1][1], past[i - 2][1]
        slopes = (past[i][0] - past[i - 1][0]) * h / h1, (past[i - 1][0] - past[i - 2][0]) * h / h2
        shape = (-torch.expm1(-2 * h) - 2 * h) / (2 * h) ** 2
        wrong = (shape - 0.5 - (2 * shape + 1)) * (slopes[0] - slopes[1]) * h / (h1 + h2)
        effective = effective + wrong / -torch.expm1(-2 * h)
        mine = step(before[i], effective, times[i], times[i + 1], SCHEDULE, 1.0, lambda _, z=draws[i]: z)
        torch.testing.assert_close(mine, theirs[i], rtol=1e-4, atol=1e-4)


def test_score_sde_ve(draws, monkeypatch):
    """Theirs corrects before it predicts, and by the batch's mean norms: so, in our order, and one image at a time."""
    schedule = VE(num_timesteps=20, sigma_min=0.05, sigma_max=10.0)
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=20, snr=0.16, sigma_min=0.05, sigma_max=10.0)
    scheduler.set_timesteps(20)
    scheduler.set_sigmas(20, sigma_min=0.05, sigma_max=10.0)
    scheduler.discrete_sigmas = schedule(torch.arange(1, 21, dtype=torch.float64) / 20)[1]
    times, denoise, x = torch.arange(20, -1, -1, dtype=torch.float64) / 20, mixture(schedule), 10 * draws[-1][:1]
    noise, theirs, values = iter(draws[:, :1]), [], iter(draws[:, :1])
    mine = [s.x for s in PredictorCorrector(DDPM("fixed_large"), snr=0.16)(denoise, x, times, lambda _: next(noise))]
    monkeypatch.setattr("diffusers.schedulers.scheduling_sde_ve.randn_tensor", lambda *a, **k: next(values))

    def score(x, t):
        return -denoise(x, t).eps / schedule(t)[1]

    for index in range(19, -1, -1):
        if index == 0:
            values = iter([torch.zeros_like(x)])
        at = torch.tensor((index + 0.5) / 19)  # which their truncation makes `index`
        x = scheduler.step_pred(score(x, torch.tensor((index + 1) / 20)), at, x).prev_sample
        if index:
            x = scheduler.step_correct(score(x, torch.tensor(index / 20)), x).prev_sample
        theirs.append(x)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
