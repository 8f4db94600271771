"""How t is drawn in training."""

import pytest
import torch

from diffusion.schedules import VE, Cosine, Flow
from diffusion.times import Uniform


@pytest.mark.parametrize("schedule", [Cosine(7), VE(7)], ids=repr)
def test_every_knot_is_equally_likely(schedule):
    """Trap 7: 1/T .. 1, T included and 0 not; chi-square with 6 degrees of freedom stays below its 1 - 1e-6 quantile, 38.3."""
    torch.manual_seed(0)
    t, weight = Uniform()(70_000, schedule)
    assert t.dtype == torch.float64 and t.shape == weight.shape == (70_000,)
    steps = (7 * t).round()
    assert torch.equal(steps / 7, t) and (weight == 1).all()
    counts = steps.long().bincount(minlength=8)
    assert counts[0] == 0 and ((counts[1:] - 10_000) ** 2 / 10_000).sum() < 38.3


def test_continuous_time_is_uniform_and_never_zero():
    torch.manual_seed(0)
    t, weight = Uniform()(100_000, Flow())
    assert t.dtype == torch.float64 and (t > 0).all() and (t <= 1).all() and (weight == 1).all()
    worst = (t.sort().values - torch.arange(1, 100_001) / 100_000).abs().max()
    assert worst < 2.7 / 100_000**0.5  # Kolmogorov-Smirnov, one in a million


def test_the_lowest_uniform_number_is_noise_and_not_data(monkeypatch):
    """torch.rand may be 0 and is never 1; t = 0 has no noise to learn from."""
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.zeros(n, **options))
    assert (Uniform()(3, Flow()).t == 1).all()


def test_knots_are_the_schedule_s_own():
    """A drawn t is, bit for bit, a time at which the label is a whole number."""
    t, _ = Uniform()(5000, Cosine())
    labels = Cosine().label(t).float()
    assert torch.equal(labels, labels.round()) and labels.min() >= 0 and labels.max() <= 999


def test_draws_come_from_torch_s_random_state():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(Uniform()(10, Cosine()).t)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], Uniform()(10, Cosine()).t)
