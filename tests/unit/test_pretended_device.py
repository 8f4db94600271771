"""Schedules and times on a device that is pretended: nothing mixes devices, and nothing waits."""

import pytest
import torch
from pretended import HERE, Device, Pretended

from diffusion import schedules
from diffusion.schedules import discrete
from diffusion.times import Antithetic, Asymmetric, Importance, LogitNormal, LogNormal, Stratified, Uniform

SCHEDULES = [
    *(getattr(schedules, name)() for name in schedules.__all__ if name not in ("Betas", "Discrete", "Exploding", "Schedule")),
    schedules.Cosine(num_timesteps=50, linear_in_sigma=True),
    schedules.Linear(zero_terminal_snr=True),
    schedules.Flow(shift=3.0),
]
TIMES = [Uniform(), Stratified(), Antithetic(), LogNormal(), LogitNormal(), Asymmetric()]
CPU0, CPU1, CPU4 = torch.tensor(0.0), torch.tensor(1.0), torch.rand(4)


@pytest.fixture
def device():
    """The device; the knots that it was given are forgotten with it."""
    discrete._table.cache_clear()
    with Device() as device:
        yield device
    discrete._table.cache_clear()


def same(pretended, expected) -> bool:
    return isinstance(pretended, Pretended) and pretended.device == HERE and torch.equal(pretended.held, expected)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: torch.lerp(CPU0, CPU1, x),  # EDM's and the VE SDE's sigma(t) as it was
        lambda x: torch.addcmul(x, CPU0, CPU1),
        lambda x: torch.addcdiv(x, CPU0, CPU1),
        lambda x: x + CPU4,
        lambda x: CPU4 * x,
        lambda x: torch.where(x < 0.5, x, CPU4),
        lambda x: torch.cat([x, CPU4]),
        lambda x: torch.stack([x.sum(), CPU0]),
        lambda x: torch.searchsorted(CPU4, x),
        lambda x: CPU4[(4 * x).long()],
        lambda x: torch.zeros(()).add_(x.sum()),
        lambda x: torch._foreach_add_([x, x], [CPU4, CPU4]),
    ],
)
def test_the_device_refuses_what_cuda_refuses(device, mixed):
    with pytest.raises(RuntimeError, match="same device"):
        mixed(device.put(torch.rand(4)))


def test_the_device_takes_what_cuda_takes(device):
    values = torch.rand(4)
    x = device.put(values)
    assert same(x + CPU1, values + 1) and same(torch.lerp(x, x, 0.5), values) and same(torch.where(x < 2, x, 1.0), values)
    assert same(x.add_(1), values)  # in place, as the tensor that holds the values
    assert x.add_(0) is x and device.waits == 0
    assert same(x[[2, 0]], values[[2, 0]])
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: float(x.sum()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0.5],
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.zeros(4).copy_(x),
        lambda x: torch.zeros(4).to(x.device),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.new_tensor(1.0),
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x[[2, 0]],
        lambda x: torch.where(x < 0.5, x, CPU1),
        lambda x: torch.multinomial(x, 1),
        lambda x: torch.linalg.eigh(x.diag()),
    ],
)
def test_the_device_counts_waits(device, wait):
    wait(device.put(torch.rand(4)))
    assert device.waits == 1


def test_what_is_asked_for_without_waiting_is_not_counted(device):
    x = device.put(torch.rand(4))
    x.to("cpu", non_blocking=True), torch.zeros(4).to(x.device, non_blocking=True), torch.zeros(4, device=x.device), x[1:], x[0]
    assert device.waits == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules(device, schedule):
    """The same numbers as on the CPU, none of them read."""
    t = torch.tensor([0.0, 1e-6, 1e-3, 0.2, 0.5, 0.999, 1.0], dtype=torch.float64)
    lambdas = schedule.log_snr(t)
    on, lambdas_on = device.put(t), device.put(lambdas)
    schedule.log_snr(on)  # the first to ask for the knots of a discrete schedule waits for them
    device.counted.clear()
    for found, expected in zip(schedule(on), schedule(t), strict=True):
        assert same(found, expected)
    assert same(schedule.log_snr(on), lambdas) and same(schedule.time(lambdas_on), schedule.time(lambdas))
    assert same(schedule.label(on), schedule.label(t)) and same(schedule.labelled(schedule.label(on)), schedule.labelled(schedule.label(t)))
    assert not device.counted


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("times", TIMES, ids=repr)
def test_times(device, times, schedule):
    times(5, schedule, HERE)
    device.counted.clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = times(5, schedule, HERE)
        torch.manual_seed(0)
        expected = times(5, schedule)
    assert same(found.t, expected.t) and same(found.weight, expected.weight) and not device.counted


def test_importance(device):
    """Its history is on the device, where losses are observed and times drawn."""
    schedule = schedules.Cosine(num_timesteps=4)
    times = Importance(4, history=1).to(HERE)
    device.counted.clear()
    for _ in range(3):
        draw = times(8, schedule, HERE)
        times.observe(draw.t, draw.t.float())
        assert isinstance(draw.t, Pretended) and isinstance(draw.weight, Pretended) and isinstance(times.probabilities(), Pretended)
    assert not device.counted
