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
        Cosine(s=0.0123)(T)
    alpha, _ = Cosine(s=0.0123)(T)
    x = torch.ones(2, requires_grad=True)
    (alpha * x).sum().backward()
    assert torch.equal(x.grad, alpha.float().expand(2))


class Logit(Schedule):
    """log_snr = -slope logit(t); subclasses say what slope is."""

    def log_snr(self, t):
        return -self.slope * torch.logit(t)

    def time(self, log_snr):
        return (-log_snr / self.slope).sigmoid()


@dataclass  # not frozen, so without a hash
class Steep(Logit):
    slope: float = 1.0


class Plain(Logit):
    """Told apart by identity."""

    slope = 1.0


@dataclass(frozen=True)
class Listed(Logit):
    slopes: list

    @property
    def slope(self):
        return self.slopes[0]


class Learned(Logit, torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))


@dataclass(frozen=True)
class Holding(Logit):
    """Frozen, with a hash by identity, and a parameter in it."""

    learned: Learned

    @property
    def slope(self):
        return self.learned.slope


def steeper(schedule):
    with torch.no_grad():
        if isinstance(schedule, Listed):
            schedule.slopes[0] = 2.0
        elif isinstance(schedule, (Learned, Holding)):
            (schedule if isinstance(schedule, Learned) else schedule.learned).slope.fill_(2.0)
        else:
            schedule.slope = 2.0


@pytest.mark.parametrize("schedule", [Steep(), Plain(), Listed([1.0]), Learned(), Holding(Learned())], ids=lambda s: type(s).__name__)
def test_a_schedule_that_changes_is_asked_each_time(schedule):
    before = schedule(T)[0]
    if before.requires_grad:
        for _ in range(2):  # each answer has a graph of its own
            schedule(T)[0].backward()
    steeper(schedule)
    assert schedule(T)[0] != before


def test_an_answer_that_is_changed_in_place_is_the_callers_own():
    before = Cosine(s=0.0321)(T)[0].item()
    Cosine(s=0.0321)(T)[0].mul_(2)
    assert Cosine(s=0.0321)(T)[0].item() == before


def test_each_time_has_its_own_type():
    assert both_levels(T.float(), S, Cosine())[2] == both_levels.__wrapped__(T.float(), S, Cosine())[2]
    assert both_levels(T, S.float(), Cosine())[2] == both_levels.__wrapped__(T, S.float(), Cosine())[2] != both_levels(T, S, Cosine())[2]


def test_it_can_be_derived_and_mapped():
    """torch.func and dual numbers by a single time, and in something else while the time is a plain number."""

    def alpha(t):
        return Cosine(s=0.0456)(t)[0]

    slope = torch.autograd.grad(alpha(u := T.clone().requires_grad_()), u)[0]
    for _ in range(2):  # also once the answer is kept
        assert torch.func.jvp(alpha, (T,), (torch.ones_like(T),))[1] == pytest.approx(slope.item(), rel=1e-12) and slope != 0
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(T, torch.ones_like(T))
            assert torch.autograd.forward_ad.unpack_dual(alpha(dual)).tangent == pytest.approx(slope.item(), rel=1e-12)
        both = torch.func.vmap(alpha)(torch.stack([T, S]))
        assert torch.equal(both, torch.stack([alpha(T), alpha(S)]))
        _, pull = torch.func.vjp(lambda x: alpha(T) * x, torch.ones(2, dtype=torch.float64))
        assert torch.equal(pull(torch.ones(2, dtype=torch.float64))[0], alpha(T).expand(2))


@dataclass(frozen=True)
class Tabled(Logit):
    """Frozen, and what it holds is not."""

    slope: torch.Tensor


def test_a_schedule_that_holds_a_tensor_is_asked_each_time():
    schedule = Tabled(torch.tensor(1.0, dtype=torch.float64))
    before = schedule(T)[0]
    schedule.slope.mul_(3)
    assert schedule(T)[0] == Schedule.__call__.__wrapped__(schedule, T)[0] != before
