"""Grids stated in sigma/alpha: their ends, their shape, and any number of steps."""

import pytest
import torch

from diffusion import grids
from diffusion.schedules import VE, Cosine, Flow, Linear, ScaledLinear

SCHEDULES = [Linear(), Cosine(), Cosine(zero_terminal_snr=True), ScaledLinear(num_timesteps=50), Flow(), Flow(shift=3), VE()]
LADDERS = [grids.Karras, grids.EDM, grids.Exponential, grids.Polyexponential, grids.LogSNR]
ALL = [*LADDERS, grids.Quadratic, grids.Beta]


def ratios(times, schedule):
    return (-schedule.log_snr(times) / 2).exp()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 33, 50])
def test_descends_from_noise_to_exactly_zero(grid, schedule, steps):
    times = grid(steps)(schedule)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert times[-1] == 0
    assert 0 < times[0] <= 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", [g for g in LADDERS if g is not grids.EDM])
def test_goes_between_the_schedules_own_ends(grid, schedule):
    times, total = grid(12)(schedule), schedule.num_timesteps or 1000
    last = 1 - 1 / total if schedule.reaches_noise else 1.0  # the last knot with a finite ratio
    torch.testing.assert_close(times[[0, -2]], torch.tensor([last, 1 / total], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_karras_by_hand():
    """EDM eq. 5 written out for three steps: the middle one is ((80^(1/7) + 0.002^(1/7))/2)^7."""
    schedule = VE(sigma_min=0.002, sigma_max=80)
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    expected = torch.tensor([80, middle, 0.002, 0], dtype=torch.float64)
    torch.testing.assert_close(ratios(grids.Karras(3)(schedule), schedule), expected, rtol=1e-9, atol=0)
    assert torch.equal(grids.EDM(3)(schedule), grids.Karras(3)(schedule))


def test_log_snr_is_uniform_in_lambda_and_exponential_is_the_same():
    times = grids.LogSNR(9)(Linear())
    steps = Linear().log_snr(times[:-1]).diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-9, atol=1e-9)
    assert torch.equal(grids.Exponential(9)(Linear()), times)
    torch.testing.assert_close(grids.Polyexponential(9)(Linear()), times, rtol=1e-9, atol=1e-12)


def test_beta_by_hand():
    """Of the arcsine distribution, Beta(1/2, 1/2), whose quantile is sin^2(pi u/2); Beta(1, 1) is even."""
    share = torch.sin(torch.pi / 2 * (1 - torch.arange(8, dtype=torch.float64) / 8)) ** 2
    torch.testing.assert_close(1000 * grids.Beta(8, 0.5, 0.5)(Linear())[:-1] - 1, 999 * share, rtol=1e-9, atol=1e-9)
    even = 1 - torch.arange(10, dtype=torch.float64) / 10
    torch.testing.assert_close(1000 * grids.Beta(10, 1, 1)(Linear())[:-1] - 1, 999 * even, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="a=0 of Beta must be above 0"):
        grids.Beta(10, 0, 1)


def test_quadratic_by_hand():
    torch.testing.assert_close(
        1000 * grids.Quadratic(4)(Linear())[:-1] - 1, 999 * torch.tensor([9, 4, 1, 0], dtype=torch.float64) / 9, rtol=1e-12, atol=1e-9
    )


def test_given_ends():
    times = grids.Karras(6, sigma_min=0.1, sigma_max=5)(Linear())
    torch.testing.assert_close(ratios(times, Linear())[[0, -2]], torch.tensor([5, 0.1], dtype=torch.float64), rtol=1e-9, atol=0)


def test_ends_beyond_the_schedule_count_as_its_own():
    assert torch.equal(grids.Karras(6, sigma_min=1e-9, sigma_max=1e9)(Linear()), grids.Karras(6)(Linear()))
    high = ratios(grids.EDM(6)(ScaledLinear()), ScaledLinear())[0]
    torch.testing.assert_close(high, ratios(torch.ones((), dtype=torch.float64), ScaledLinear()), rtol=1e-9, atol=0)  # 14.6, not 80


@pytest.mark.parametrize("grid", LADDERS)
def test_bad_settings_are_refused(grid):
    with pytest.raises(ValueError, match=r"steps=0 of .* must be between 1 and"):
        grid(0)
    with pytest.raises(ValueError, match="leave no room"):
        grid(5, sigma_min=3.0, sigma_max=2.0)(Linear())


def test_quadratic_is_at_most_the_schedules_steps():
    with pytest.raises(ValueError, match=r"grid\.steps=51 .* 50"):
        grids.Quadratic(51)(ScaledLinear(num_timesteps=50))
