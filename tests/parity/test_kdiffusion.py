"""Step-by-step parity with k-diffusion, in float64: the same denoiser, the same noise, every state.

k-diffusion moves y = x/alpha along sigma/alpha; here x moves in native coordinates, on a variance-preserving schedule."""

import pytest
import torch
from walks import LINEAR, at, begin, close, mixture, ours, ratios

from diffusion import grids
from diffusion.generate import Asked
from diffusion.samplers import DPM2, DPMPP2M, DPMPP3M, EDM, LMS, DPMAdaptive, DPMSolver, Euler, Heun
from diffusion.schedules import VE

sampling = pytest.importorskip("k_diffusion.sampling")
KARRAS = grids.Karras(12, sigma_max=10)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model(y, sigma):
    """D(y; sigma), k-diffusion's way of calling `mixture()`."""
    t = at(sigma[0], LINEAR)
    return mixture()(LINEAR(t)[0] * y, t).x0


def theirs(sample, x, times, **settings):
    """x after each step: the callback sees y before each, the answer is the last."""
    alpha, before = LINEAR(times)[0], []
    sigmas = ratios(times, LINEAR)
    y = sample(model, x / alpha[0], sigmas, callback=lambda info: before.append(info["x"]), disable=True, **settings)
    return alpha[1:, None, None] * torch.stack([*before[1:], y])


def compare(sampler, sample, grid=KARRAS, tolerance=1e-9, draw=torch.zeros_like, **settings):
    times = grid(LINEAR)
    x = begin(times, LINEAR)
    torch.manual_seed(0)
    reference = theirs(sample, x, times, **settings)
    torch.manual_seed(0)
    close(ours(sampler, mixture(), x, times, draw), reference, tolerance)


@pytest.mark.parametrize("grid", [KARRAS, grids.LogSNR(12), grids.Trailing(7)], ids=lambda grid: type(grid).__name__)
@pytest.mark.parametrize(
    ("sampler", "name", "settings"),
    [
        (Euler(), "euler", {}),
        (Heun(), "heun", {}),
        (DPM2(), "dpm_2", {}),
        (LMS(), "lms", {}),
        (LMS(2), "lms", {"order": 2}),
        (DPMPP2M(), "dpmpp_2m", {}),
        (DPMPP2M(), "dpmpp_2m_sde", {"eta": 0, "solver_type": "midpoint"}),
        (DPMPP2M("heun"), "dpmpp_2m_sde", {"eta": 0, "solver_type": "heun"}),
    ],
    ids=str,
)
def test_deterministic(sampler, name, settings, grid):
    if name.endswith("sde"):
        settings = settings | {"noise_sampler": lambda a, b: 0.0}
    compare(sampler, getattr(sampling, f"sample_{name}"), grid, **settings)


@pytest.mark.parametrize("constants", [(3.0, 0.0, float("inf"), 1.0), (8.0, 0.05, 5.0, 1.003)], ids=str)
@pytest.mark.parametrize(("sampler", "name"), [(Heun, "heun"), (EDM, "heun"), (DPM2, "dpm_2")])
def test_churn(sampler, name, constants):
    # k-diffusion draws noise at every step, whether it is used or not; so the noise here is kept in step with the steps
    churn, low, high, scale = constants
    times = KARRAS(LINEAR)
    used = (low <= ratios(times, LINEAR)) & (ratios(times, LINEAR) <= high)
    torch.manual_seed(0)
    drawn = iter([z for z, use in zip([torch.randn(8, 2, dtype=torch.float64) for _ in times[1:]], used, strict=False) if use])
    names = dict(s_churn=churn, s_tmin=low, s_tmax=high, s_noise=scale)
    mine = sampler(s_churn=churn, s_min=low, s_max=high, s_noise=scale)
    x = begin(times, LINEAR)
    torch.manual_seed(0)
    reference = theirs(getattr(sampling, f"sample_{name}"), x, times, **names)
    close(ours(mine, mixture(), x, times, lambda x: next(drawn))[-1:], reference[-1:], 1e-9)  # its callback sees y after the noise


def test_the_churned_level_stays_on_the_schedule():
    # EDM alg. 2 goes up to sigma (1 + gamma) even from sigma_max; a network was never shown that level: here it stops at t = 1
    times = grids.Karras(4)(LINEAR)
    x = begin(times, LINEAR)
    up = Heun(s_churn=100).churn(x, times[0], 4, LINEAR, torch.randn_like)
    torch.testing.assert_close(up, (x, times[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("calls", [4, 6, 7, 12, 13])
def test_dpm_fast(calls):
    # calls = 2 modulo 3 differs by definition: DPM-Solver-fast closes with a step of order 2, which cannot go to sigma = 0 as our grids do
    steps = calls // 3 + 1
    orders = [3] * (steps - 2) + [2, 1] if calls % 3 == 0 else [3] * (steps - 1) + [1]
    high, low = 10.0, 0.05
    knots = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    inner = [a + (b - a) * k / order for a, b, order in zip(knots, knots[1:], orders, strict=False) for k in range(order)]
    times = at(high * (low / high) ** torch.tensor([*inner, 1.0], dtype=torch.float64), LINEAR)
    x, alpha = begin(times, LINEAR), LINEAR(times)[0]
    y = sampling.sample_dpm_fast(model, x / alpha[0], low, high, calls, disable=True)
    got = ours(DPMSolver(3), mixture(), x, times)
    assert len(got) == calls
    # its times are made with torch.tensor(sigma) in float32
    close(got[-1:], alpha[-1] * y[None], 2e-6)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("tolerances", [{}, {"rtol": 1e-3, "atol": 1e-4}], ids=["default", "fine"])
def test_dpm_adaptive(order, tolerances):
    """Image by image, for k-diffusion's steps are those of the batch; ours does all at once."""
    high, low = 10.0, 0.05
    times = at(torch.tensor([high, low], dtype=torch.float64), LINEAR)
    x, alpha = begin(times, LINEAR), LINEAR(times)[0]
    solver = sampling.DPMSolver(model)  # sample_dpm_adaptive would make these times float32
    levels = [-torch.tensor(s, dtype=torch.float64).log() for s in (high, low)]
    each = [solver.dpm_solver_adaptive(row[None] / alpha[0], *levels, order=order, **tolerances) for row in x]
    assert len({info["nfe"] for _, info in each}) > 1  # not all the same steps
    denoise = Asked(mixture())
    (state,) = DPMAdaptive(order=order, **tolerances)(denoise, x, times)
    close(state.x[None], alpha[-1] * torch.cat([y for y, _ in each])[None], 1e-6)  # its tolerances are float32
    # what is rejected keeps its first call there
    assert denoise.nfe - 1 >= max(info["nfe"] for _, info in each)


def test_3m_gives_the_curvature_half_its_weight():
    """k-diffusion's 3M SDE at eta = 0 (and diffusers' third order) takes d2 = f[0, 1, 2] h^2 for the second derivative times h^2.

    That is 2 f[0, 1, 2] h^2: the error left is of second order, ours of third."""
    schedule = VE(sigma_min=1e-3, sigma_max=1e4)
    oracle, order = mixture(schedule), {}
    for name in ("theirs", "ours"):
        states = []
        for steps in (64, 128, 2048):
            times = grids.LogSNR(steps + 1, sigma_min=0.05, sigma_max=1e3)(schedule)[:-1]
            x = begin(times, schedule)
            if name == "ours":
                states.append(ours(DPMPP3M(), oracle, x, times)[-1])
            else:
                quiet = dict(eta=0, noise_sampler=lambda a, b: 0.0, disable=True)
                call = lambda y, sigma: oracle(y, at(sigma[0], schedule)).x0  # noqa: E731
                states.append(sampling.sample_dpmpp_3m_sde(call, x, ratios(times, schedule), **quiet))
        coarse, fine = ((state - states[2]).norm() for state in states[:2])
        order[name] = (coarse / fine).log2().item()
    assert abs(order["theirs"] - 2) < 0.25
    assert abs(order["ours"] - 3) < 0.25


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize(
    ("grid", "name", "settings"),
    [
        (grids.Karras, "karras", {}),
        (grids.Karras, "karras", {"rho": 3.0}),
        (grids.Exponential, "exponential", {}),
        (grids.LogSNR, "exponential", {}),
        (grids.Polyexponential, "polyexponential", {}),
        (grids.Polyexponential, "polyexponential", {"rho": 2.0}),
    ],
)
def test_ladders(grid, name, settings, steps):
    low, high = grids.ends(LINEAR)
    reference = getattr(sampling, f"get_sigmas_{name}")(steps, low, high, **settings)  # a float32 ramp
    torch.testing.assert_close(ratios(grid(steps, **settings)(LINEAR), LINEAR), reference.double(), rtol=2e-5, atol=1e-12)
