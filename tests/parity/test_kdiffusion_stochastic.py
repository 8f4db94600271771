"""Every stochastic sampler of k-diffusion, step by step, in float64: same network output, same noise.

k-diffusion works in x/alpha and sigma/alpha. Its model is made here of our denoiser, so both ask the same network."""

from itertools import pairwise

import pytest
import torch

from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, DPMPP2MSDE, DPMPP3MSDE, DPMPPSDE, DPM2Ancestral, DPMPP2SAncestral, EulerAncestral
from diffusion.samplers.stochastic import correlation
from diffusion.schedules import VE, Cosine, ScaledLinear

reference = pytest.importorskip("k_diffusion.sampling")
# From t = 0.97: cosine's sigma/alpha of 20,291 at t = 1 costs either side four digits in forming x - sigma eps.
TIMES = torch.tensor([0.97, 0.83, 0.7, 0.52, 0.31, 0.18, 0.05, 0.0], dtype=torch.float64)
SCHEDULES = [VE(sigma_min=0.02, sigma_max=40.0), Cosine(), ScaledLinear()]


def mixture(schedule):
    means = torch.tensor([[[0.9, -0.4]], [[-0.7, 0.2]], [[0.1, 0.8]]])
    return GaussianMixture(means, torch.tensor([0.2, 0.35, 0.1]), torch.tensor([0.5, 0.3, 0.2]), schedule)


def ratio(schedule, t):
    alpha, sigma = schedule(t)
    return sigma / alpha


def theirs(sample, denoise, x, noise, **options):
    """k-diffusion's states, in native coordinates, x before each step and at the end."""
    schedule, states = denoise.schedule, []

    def model(x, sigma):
        t = schedule.time(-2 * sigma[0].log())
        return denoise(schedule(t)[0] * x, t).x0

    def note(info):
        states.append(info["x"])

    alphas = schedule(TIMES)[0]
    final = sample(
        model, x / alphas[0], ratio(schedule, TIMES), noise_sampler=lambda *_: next(noise), callback=note, disable=True, **options
    )
    return [alpha * state for alpha, state in zip(alphas, [*states, final], strict=True)]


class HalvedBend(DPMPP3MSDE):
    """Their 3M SDE: d2 is the second divided difference, which is half the second derivative that the expansion asks for. It makes a
    solver of the second order (tests/oracle/test_stochastic.py measures both)."""

    def extrapolate(self, h, past):
        if len(past) < 3:
            return super().extrapolate(h, past)
        phi3, bend, phi1 = bending(h, past, 1 + self.eta)
        return super().extrapolate(h, past) + phi3 * bend / phi1


def bending(h, past, strength):
    """(phi_3, second divided difference of x_0 in units of h, phi_1)."""
    (now, _), (before, h1), (long_ago, h2) = past
    total = strength * h
    phi1 = -torch.expm1(-total)
    bend = ((now - before) * h / h1 - (before - long_ago) * h / h2) * h / (h1 + h2)
    return (total - phi1) / total**2 - 0.5, bend, phi1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        (DDIM, "euler_ancestral"),
        (DPM2Ancestral, "dpm_2_ancestral"),
        (DPMPP2SAncestral, "dpmpp_2s_ancestral"),
        (DPMPPSDE, "dpmpp_sde"),
        (DPMPP2MSDE, "dpmpp_2m_sde"),
        (DPMPP3MSDE, "dpmpp_3m_sde"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_every_state_is_theirs(sampler, name, eta, schedule):
    draws = torch.randn(40, 5, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    denoise, x = mixture(schedule), schedule(TIMES[0])[1] * draws[-1]
    s_noise = {} if sampler is DDIM else {"s_noise": 1.03}
    ours_noise, theirs_noise = iter(draws), iter(draws)
    sampler = HalvedBend if sampler is DPMPP3MSDE else sampler
    if sampler is DPMPPSDE:  # theirs asks for the noise of t -> m and then for that of t -> s, which ours combines of two
        theirs_noise = combined(schedule, draws)
    ours = [state.x for state in sampler(eta=eta, **s_noise)(denoise, x, TIMES, lambda _: next(ours_noise))]
    states = theirs(getattr(reference, f"sample_{name}"), denoise, x, theirs_noise, eta=eta, **s_noise)[1:]
    assert len(ours) == len(states)
    for mine, other in zip(ours, states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def combined(schedule, draws):
    """For each step of dpmpp_sde, z1 and rho z1 + sqrt(1 - rho^2) z2."""
    draws = iter(draws)
    for t, s in pairwise(TIMES[:-1]):
        middle = schedule.time((schedule.log_snr(t) + schedule.log_snr(s)) / 2)
        z1, z2, rho = next(draws), next(draws), correlation(t, middle, s, schedule)
        yield z1
        yield rho * z1 + (1 - rho**2).sqrt() * z2


def test_euler_ancestral_is_ddim_with_eta_1():
    assert EulerAncestral().eta == 1.0


def test_their_heun_solver_type_differs():
    """k-diffusion's 2M SDE has a second form, solver_type="heun", whose correction is phi_2 (x0 - x0') h/h_1 in place of
    phi_1/2 (x0 - x0') h/h_1: equal to second order, so a test that passed for both would not see an error in either."""
    denoise, draws = mixture(SCHEDULES[0]), torch.randn(9, 5, 1, 2, dtype=torch.float64)
    x = 40 * draws[-1]
    midpoint, heun = (theirs(reference.sample_dpmpp_2m_sde, denoise, x, iter(draws), solver_type=k)[-1] for k in ("midpoint", "heun"))
    assert (midpoint - heun).abs().max() > 1e-6
