"""Orders of convergence on a Gaussian mixture, whose probability-flow ODE is known exactly.

Each sampler runs over n equal steps of log(sigma/alpha) from 1000 to 0.05 and then makes its first-order move to 0; the error is
that of x at 0.05, before that move, against SciPy's DOP853 at a tolerance of 1e-13. The start is high because multistep samplers
begin at first order: there the estimates hardly change and that costs nothing, so that the slope is the method's own."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from scipy.integrate import RK45 as SciPyRK45
from scipy.integrate import solve_ivp

from diffusion.generate import Asked
from diffusion.grids import LogSNR
from diffusion.oracles import GaussianMixture
from diffusion.posterior import step
from diffusion.samplers import (
    DDIM,
    DEIS,
    DPM2,
    DPMPP2M,
    DPMPP3M,
    EDM,
    IPNDM,
    LMS,
    PNDM,
    RK45,
    DPMAdaptive,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    State,
    UniPC,
)
from diffusion.samplers.blend import hold_eps, log_ratio
from diffusion.schedules import VE

HIGH, LOW = 1000.0, 0.05
SCHEDULE = VE(sigma_min=1e-3, sigma_max=1e4)
MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.0]], dtype=torch.float64)
ORACLE = GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.4]), schedule=SCHEDULE)
X = HIGH * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def velocity(u, x):
    """dx/du, u = log sigma, for SciPy: sigma eps."""
    sigma = torch.tensor(u, dtype=torch.float64).exp()
    eps = ORACLE(torch.from_numpy(x).reshape(X.shape), SCHEDULE.time(-2 * sigma.log())).eps
    return (sigma * eps).numpy().ravel()


@cache
def truth():
    solution = solve_ivp(velocity, (log(HIGH), log(LOW)), X.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(solution.y[:, -1].reshape(X.shape))


def error(sampler, n):
    """Root mean square error at sigma = LOW after n steps."""
    times = LogSNR(n + 1, sigma_min=LOW, sigma_max=HIGH)(SCHEDULE)
    states = list(sampler(ORACLE, X, times))
    assert states[-1].t == 0
    assert states[-1].x.isfinite().all()
    state = states[n - 1]
    assert state.t == times[n]
    return (state.x - truth()).square().mean().sqrt().item()


def slope(sampler, counts):
    return -np.polyfit(np.log(counts), np.log([error(sampler, n) for n in counts]), 1)[0]


COUNTS = (120, 180, 270)  # multiples of 2 and 3: a single-step sampler's steps of full order are all there are before LOW

ORDERS = [
    (Euler(), 1),
    (DDIM(), 1),
    (Heun(), 2),
    (EDM(s_churn=0), 2),
    (DPM2(), 2),
    (LMS(1), 1),
    (LMS(2), 2),
    (LMS(3), 3),
    (LMS(4), 4),
    (PNDM(), 2),  # property 3.2 of the paper: however high the order of the formula, the pseudo transfer leaves the second
    (PNDM(skip_prk_steps=True), 2),
    (IPNDM(1), 1),
    (IPNDM(2), 2),
    (IPNDM(4), 2),
    (DPMSolver(1), 1),
    (DPMSolver(2), 2),
    (DPMSolver(2, "heun"), 2),
    (DPMSolver(3), 3),
    (DPMSolver(3, "heun"), 3),
    (DPMSolverPP(2), 2),
    (DPMSolverPP(3), 3),
    (DPMSolverPP(3, "heun"), 3),
    (DPMPP2M(), 2),
    (DPMPP2M("heun"), 2),
    (DPMPP3M(), 3),
    (UniPC(1), 2),  # theorem 3.1 of the paper: the corrector raises the predictor's order by one
    (UniPC(2), 3),
    (UniPC(2, "bh1"), 3),
    (DEIS(1), 1),
    (DEIS(2), 2),
    (DEIS(3), 3),
    (DEIS(4), 4),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=lambda value: str(value).replace(", ", " "))
def test_order(sampler, order):
    assert abs(slope(sampler, COUNTS) - order) < 0.25


def test_unipc_3_is_of_order_4():
    """On fewer steps than the others: its start, of order 1 and then 2, shows when the rest of the error is as small as this."""
    assert abs(slope(UniPC(3), (36, 48, 64)) - 4) < 0.25


@dataclass(frozen=True)
class SourceDPM2:
    """Document 000, eq. 75: x' = x + (s' - s)(g + g_mid)/2."""

    def __call__(self, denoise, x, times, noise=None):
        schedule = denoise.schedule
        for t, s in pairwise(times):
            known = (t, denoise(x, t))
            x0 = known[1].x0
            if s > 0:
                middle = schedule.time(-log_ratio(t, schedule) - log_ratio(s, schedule))
                second = denoise(step(x, x0, t, middle, schedule), middle)
                x0 = hold_eps((known[1].eps + second.eps) / 2, known, schedule)
            x = step(x, x0, t, s, schedule)
            yield State(x, known[1].x0, s)


def test_document_000_equation_75_is_first_order():
    """The average of the slopes at both ends of the first half is not the slope of the whole; eq. 75 with g_mid alone is `DPM2`."""
    assert abs(slope(SourceDPM2(), COUNTS) - 1) < 0.25
    assert error(SourceDPM2(), 120) > 10 * error(DPM2(), 120)


def run(sampler):
    """(root mean square error at LOW, calls)."""
    times = LogSNR(2, sigma_min=LOW, sigma_max=HIGH)(SCHEDULE)
    denoise = Asked(ORACLE, None)
    states = list(sampler(denoise, X, times))
    assert [state.t.item() for state in states] == times[1:].tolist()
    return (states[0].x - truth()).square().mean().sqrt().item(), denoise.nfe


def test_rk45_keeps_its_tolerance():
    """The global error follows the tolerance, at about a fifth-order method's price: ten times the accuracy for 10^(1/5) the calls."""
    errors, calls = zip(*(run(RK45(rtol=10.0**-k, atol=10.0**-k)) for k in (4, 6, 8)), strict=True)
    for k, value in zip((4, 6, 8), errors, strict=True):
        assert value < 3 * 10.0**-k
    assert 1.5 < calls[1] / calls[0] < 4
    assert 1.5 < calls[2] / calls[1] < 4


def test_rk45_makes_as_many_calls_as_scipy():
    """SciPy's solver of the same pair on the same equation in log sigma, all six points as one system."""
    solver, calls = SciPyRK45(velocity, log(HIGH), X.numpy().ravel(), log(LOW), rtol=1e-6, atol=1e-6), 0
    while solver.status == "running":
        solver.step()
        calls = solver.nfev
    assert run(RK45(rtol=1e-6, atol=1e-6))[1] < 1.5 * calls


@pytest.mark.parametrize(("order", "power"), [(2, 1 / 2), (3, 1 / 3)])
def test_dpm_adaptive_keeps_its_tolerance(order, power):
    """The step's error is that of the lower order, E ~ h^order: a hundredth of the tolerance costs 100^(1/order) times the calls."""
    errors, calls = zip(*(run(DPMAdaptive(10.0**-k, 10.0**-k, order)) for k in (4, 6)), strict=True)
    assert errors[0] < 3e-4 and errors[1] < 3e-6
    assert 0.6 < calls[1] / calls[0] / 100**power < 1.4


@pytest.mark.parametrize("sampler", [RK45(), DPMAdaptive(), DPMAdaptive(order=2)], ids=str)
def test_adaptive_does_not_depend_on_the_batch(sampler):
    times = LogSNR(2, sigma_min=LOW, sigma_max=HIGH)(SCHEDULE)
    whole = list(sampler(ORACLE, X, times))[-1].x
    parts = torch.cat([list(sampler(ORACLE, X[i : i + 2], times))[-1].x for i in (0, 2, 4)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [RK45(), DPMAdaptive()], ids=str)
def test_adaptive_refuses_a_denoiser_that_is_not_finite(sampler):
    class Broken(Asked):
        def __call__(self, x, t):
            estimate = super().__call__(x, t)
            broken = self.nfe > 20
            return estimate._replace(x0=estimate.x0 / 0 if broken else estimate.x0, eps=estimate.eps / 0 if broken else estimate.eps)

    with pytest.raises(ValueError, match="smaller steps"):
        list(sampler(Broken(ORACLE, None), X, LogSNR(2)(SCHEDULE)))
