"""What is known of single times is looked up once, and is what it would be if it were not kept."""

from dataclasses import dataclass

import pytest
import torch

from diffusion import schedules
from diffusion.posterior import both_levels, of_posterior, of_step, shrink
from diffusion.samplers.blend import log_ratio
from diffusion.schedules import Cosine, Linear, Schedule
from diffusion.schedules.base import remembered

NAMES = [name for name in schedules.__all__ if name not in ("Betas", "Discrete", "Exploding", "Schedule")]
T, S = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
FUNCTIONS = {
    Schedule.__call__: lambda schedule: (schedule, T),
    both_levels: lambda schedule: (T, S, schedule),
    shrink: lambda schedule: (T, S, schedule),
    log_ratio: lambda schedule: (T, schedule),
    of_posterior: lambda schedule: (T, S, schedule),
    of_step: lambda schedule: (T, S, schedule, 0.3),
}


def flat(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_answers_are_those_of_the_function(name):
    schedule = getattr(schedules, name)()
    for function, args in FUNCTIONS.items():
        for _ in range(2):
            found, expected = flat(function(*args(schedule))), flat(function.__wrapped__(*args(schedule)))
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_times_dtypes_and_schedules_are_told_apart():
    assert Cosine()(T)[0] != Linear()(T)[0] and Cosine()(T)[0] != Cosine()(S)[0] and Cosine()(T)[0] != Cosine(s=0.1)(T)[0]
    assert Cosine()(T.float())[0].dtype == torch.float32
    assert of_step(T, S, Cosine(), 0.3)[2] != of_step(T, S, Cosine(), 0.8)[2]  # and a plain value from a time that is equal to it
    assert of_step(T, S, Cosine(), S)[2] == of_step(T, S, Cosine(), 0.3)[2]


def test_it_is_asked_once():
    asked = []

    @remembered
    def ratio(t, s):
        asked.append((t, s))
        return t / s

    assert [ratio(T, S), ratio(T.clone(), S), ratio(S, T)] == [T / S, T / S, S / T] and len(asked) == 2
    assert ratio(T[None], S[None]) == T / S and ratio(T.requires_grad_(), S).requires_grad and len(asked) == 4
    T.requires_grad_(False)


def test_what_was_found_without_gradients_serves_one_with_them():
    with torch.inference_mode():
        alpha, _ = Cosine(s=0.0123)(T)
    x = torch.ones(2, requires_grad=True)
    (alpha * x).sum().backward()
    assert torch.equal(x.grad, alpha.float().expand(2))


def test_a_schedule_that_cannot_be_told_apart_is_asked_each_time():
    @dataclass  # not frozen, so without a hash
    class Steep(Schedule):
        slope: float = 1.0

        def log_snr(self, t):
            return -self.slope * torch.logit(t)

        def time(self, log_snr):
            return (-log_snr / self.slope).sigmoid()

    schedule = Steep()
    before = schedule(T)[0]
    schedule.slope = 2.0
    assert schedule(T)[0] != before
