"""A sampler called for a part of a grid makes the moves that it makes on the whole of it; and no move trusts an estimate too much."""

from itertools import pairwise

import pytest
import torch

from diffusion import grids
from diffusion.denoiser import Estimate
from diffusion.editing import FromImage, Inpaint
from diffusion.oracles import GaussianMixture
from diffusion.samplers import (
    DDIM,
    DDPM,
    DPM2,
    DPMPPSDE,
    EDM,
    PNDM,
    DPM2Ancestral,
    DPMPP2SAncestral,
    DPMSolver,
    EulerAncestral,
    Heun,
    Langevin,
    PredictorCorrector,
    last,
)
from diffusion.schedules import VE, Cosine, Flow, Linear

MEANS, STDS = torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.0]], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.4])
TIMES = grids.Karras(10)(Linear())
X = Linear()(TIMES[0])[1] * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WITHOUT_MEMORY = [
    DDPM(),
    DDIM(),
    EulerAncestral(),
    Heun(),
    Heun(s_churn=2),
    DPM2(s_churn=3),
    EDM(),
    EDM(s_churn=1.5),
    DPM2Ancestral(),
    DPMPP2SAncestral(),
    DPMPPSDE(),
    Langevin(walk=2),
    PredictorCorrector(),
    PredictorCorrector(EDM(s_churn=1.5)),
]
each = pytest.mark.parametrize("sampler", WITHOUT_MEMORY, ids=str)


def mixture(schedule):
    return GaussianMixture(MEANS, STDS, schedule=schedule)


def walk(sampler, x=X, times=TIMES):
    """Every state, with a noise that does not depend on how often it was asked for."""
    return [state.x for state in sampler(mixture(Linear()), x, times, torch.ones_like)]


def close(got, expected):
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=1e-11, atol=1e-11)


@each
@pytest.mark.parametrize(
    "around",
    [lambda sampler: PredictorCorrector(sampler, corrections=0), lambda sampler: Inpaint(sampler, torch.zeros(2), torch.ones(2))],
    ids=["predictor", "inpaint"],
)
def test_move_by_move_is_the_whole_walk(sampler, around):
    """Where nothing is corrected, and where everything is painted anew."""
    close(walk(around(sampler)), walk(sampler))


@each
def test_the_end_of_a_grid_is_the_end_of_the_walk(sampler):
    """From the state after four moves, which image to image is made to begin with."""
    states, t = walk(sampler), TIMES[4]
    x = states[3] / Linear()(t)[1] * Linear()(TIMES[0])[1]
    close(walk(FromImage(sampler, torch.zeros(2), t.item()), x), states[4:])


def test_the_noise_of_a_wrapped_sampler_is_the_paper_s():
    """EDM alg. 2: gamma = min(S_churn/N, sqrt 2 - 1), N the grid's steps: at S_churn = 1 each of 10 goes up by a tenth, not by 0.41."""
    seen = []

    class Watched(GaussianMixture):
        def __call__(self, x, t, cond=None):
            seen.append((-self.schedule.log_snr(t) / 2).exp())
            return super().__call__(x, t, cond)

    times = grids.Karras(10, sigma_max=10.0)(Linear())
    last(PredictorCorrector(Heun(s_churn=1), corrections=0)(Watched(MEANS, STDS, schedule=Linear()), X, times))
    up = [value / (-Linear().log_snr(t) / 2).exp() for value, t in zip(seen[::2], times[:-1], strict=False)]
    torch.testing.assert_close(torch.stack(up), torch.full((10,), 1.1, dtype=torch.float64), rtol=1e-9, atol=0)


class Mistaken:
    """A denoiser whose x_0 is wrong by up to `error`, by another amount at each time, as a network's is."""

    def __init__(self, schedule, error):
        self.exact, self.schedule, self.error = mixture(schedule), schedule, error

    def __call__(self, x, t, cond=None):
        alpha, sigma = self.schedule(t)
        x0 = self.exact(x, t).x0 + self.error * torch.cos(37 * t.log())
        return Estimate(x0, (x - alpha * x0) / sigma)


@pytest.mark.parametrize("grid", [grids.Trailing, grids.Linspace, grids.Quadratic, grids.Karras], ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(), VE(), Flow(), Cosine(zero_terminal_snr=True)], ids=str)
@pytest.mark.parametrize("sampler", [Heun(), EDM(), DPM2(), DPM2Ancestral(), DPMSolver(), DPMSolver(3), PNDM(), PNDM(True)], ids=str)
def test_a_small_error_of_the_network_stays_small(sampler, schedule, grid):
    """From the cosine schedule's last sigma/alpha, 20,291, to the next time of an even grid, a slope made of two estimates multiplied the
    difference of their errors by hundreds: Heun's by 35 in the median image here, PNDM's by millions."""
    times = grid(20)(schedule)
    x = schedule(times[0])[1] * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, wrong = (last(sampler(Mistaken(schedule, error), x, times, torch.zeros_like)).x for error in (0, 0.01))
    assert (exact - wrong).abs().median() < 0.3
    assert exact.abs().max() < 4 and wrong.abs().max() < 4


def test_a_second_order_step_stays_one_on_a_ladder():
    """A ladder's falls are gentle: two calls a step but for the last, from 20,291 too."""
    for schedule in (Cosine(), Linear(), VE()):
        for grid in (grids.Karras(18), grids.EDM(18), grids.LogSNR(30), grids.Karras(6, sigma_max=80.0)):
            calls = []

            class Counted(Mistaken):
                def __call__(self, x, t, cond=None, calls=calls):
                    calls.append(t)
                    return super().__call__(x, t)

            times = grid(schedule)
            last(Heun()(Counted(schedule, 0), torch.ones(1, 2, dtype=torch.float64), times))
            assert len(calls) == 2 * grid.steps - 1 and [t for t, _ in pairwise(times)] == [*calls[::2]]
