"""Learning-rate schedules against closed forms."""

import math

import pytest

from diffusion.training.lr_schedules import InverseSqrt, Warmup


def test_inverse_sqrt_is_edm2_s():
    """2312.02696, eq. 67: alpha_ref / sqrt(max(t / t_ref, 1)), t the steps with this one; before it the linear warm-up."""
    schedule = InverseSqrt(reference=100, warmup=10)
    assert [schedule(step) for step in (0, 4, 9, 50, 99)] == [0.1, 0.5, 1, 1, 1]
    assert [schedule(step) for step in (399, 9_999, 999_999)] == pytest.approx([1 / 2, 1 / 10, 1 / 100])


def test_inverse_sqrt_needs_no_end():
    """A training stopped at any step has had the same rates as a longer one, whose rates fall on and never to 0."""
    schedule = InverseSqrt(reference=10, warmup=0)
    rates = [schedule(step) for step in range(1000)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_a_warm_up_longer_than_the_reference_is_multiplied():
    """As EDM2's code does."""
    schedule = InverseSqrt(reference=10, warmup=40)
    assert schedule(19) == pytest.approx(Warmup(40)(19) / math.sqrt(2))


@pytest.mark.parametrize("settings", [{"reference": 0}, {"reference": 10, "warmup": -1}])
def test_what_is_no_number_of_steps_is_refused(settings):
    with pytest.raises(ValueError, match=r"reference|warmup"):
        InverseSqrt(**settings)
