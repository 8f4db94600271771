"""What the network's output means: every conversion and its inverse."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser, null
from diffusion.parameterization import EDM, X0, Epsilon, ScaledScore, Score, V, Velocity
from diffusion.schedules import VE, Cosine, Flow, Linear, Quadratic, ScaledLinear, Sigmoid
from diffusion.typing import expand

EVERY = [Epsilon(), X0(), V(), Score(), Velocity(), ScaledScore(), EDM(), EDM(sigma_data=0.3)]
SCHEDULES = [Linear(), Cosine(), Quadratic(), ScaledLinear(), Sigmoid(), VE(), Flow(), Flow(shift=3.0), Cosine(zero_terminal_snr=True)]
names = {"ids": lambda x: type(x).__name__}


def pair(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x0, eps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("read", EVERY, **names)
def test_round_trip(read, schedule):
    """The target for (x_0, eps), read at x_t, gives (x_0, eps); rounding in x_0 is amplified by sigma/alpha, in eps by its inverse."""
    t = torch.tensor([1e-3, 0.0105, 0.1, 0.37, 0.5, 0.75, 0.99], dtype=torch.float64)
    x0, eps = pair(len(t))
    alpha, sigma = (expand(v, x0) for v in schedule(t))
    x_t = alpha * x0 + sigma * eps
    out = read.target(x0, eps, alpha, sigma)
    ratio = sigma / alpha
    assert ((read.x0(out, x_t, alpha, sigma) - x0).abs() <= 2e-14 * (1 + ratio)).all()
    assert ((read.eps(out, x_t, alpha, sigma) - eps).abs() <= 2e-14 * (1 + 1 / ratio)).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("read", EVERY, **names)
def test_the_pair_that_is_read_composes_to_x_t(read, schedule):
    """For any output at all, alpha x_0 + sigma eps = x_t: a network's two estimates never contradict each other."""
    t = torch.tensor([0.0105, 0.37, 0.9], dtype=torch.float64)
    x_t, out = pair(3)
    alpha, sigma = (expand(v, x_t) for v in schedule(t))
    x0, eps = read.x0(out, x_t, alpha, sigma), read.eps(out, x_t, alpha, sigma)
    scale = 1 + (alpha * x0).abs() + (sigma * eps).abs()
    assert ((alpha * x0 + sigma * eps - x_t).abs() <= 1e-13 * scale).all()


@pytest.mark.parametrize("read", [X0(), V(), Velocity()], **names)
@pytest.mark.parametrize("schedule", [Flow(), Linear(zero_terminal_snr=True), Cosine(zero_terminal_snr=True)], ids=repr)
def test_pure_noise_is_finite_and_exact(read, schedule):
    x0, eps = pair(2)
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    assert alpha == 0
    out = read.target(x0, eps, alpha, sigma)
    torch.testing.assert_close(read.x0(out, eps, alpha, sigma), x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(read.eps(out, eps, alpha, sigma), eps, rtol=0, atol=1e-14)


def test_definitions():
    """MATHS 2, in numbers: alpha = 0.8, sigma = 0.6, x_0 = 1, eps = 2."""
    x0, eps, alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (1.0, 2.0, 0.8, 0.6))
    targets = [read.target(x0, eps, alpha, sigma).item() for read in EVERY]
    assert targets == pytest.approx([2.0, 1.0, 1.0, -2 / 0.6, 1.0, -2.0, 0.4 / 0.52**0.5, 1.52 / 0.4176**0.5], rel=1e-14)
    # v = 0.8 x 2 - 0.6 x 1; u = 2 - 1; EDM: c_in (0.6/0.5 x 1 - 0.8 x 0.5 x 2), c_in^-2 = (0.8 x 0.5)^2 + 0.36


class Linearly(nn.Module):
    """A network of a given meaning, for data N(0, 1): what it should say is linear in x_t."""

    def __init__(self, read, schedule):
        super().__init__()
        self.read, self.schedule = read, schedule

    def forward(self, x, label, cond):
        alpha, sigma = (expand(v, x) for v in self.schedule((label.double() + 1) / 1000))
        x_t = x / self.read.scale_in(alpha, sigma)
        x0 = 0.7 * alpha / (alpha**2 + sigma**2) * x_t + 0.1
        return self.read.target(x0, (x_t - alpha * x0) / sigma, alpha, sigma)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VE()], ids=repr)
def test_one_network_expressed_every_way_is_one_denoiser(schedule):
    x_t, _ = pair(4)
    t = torch.tensor([1, 37, 500, 800], dtype=torch.float64) / 1000
    want = None
    for read in EVERY:
        got = Denoiser(Linearly(read, schedule), schedule, read)(x_t, t)
        want = want or got
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [Flow(), Linear(zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("read", [Epsilon(), Score()], **names)
def test_what_cannot_tell_x0_from_noise_is_refused(read, schedule):
    with pytest.raises(
        ValueError, match=rf"{type(read).__name__} prediction cannot be used with {type(schedule).__name__}.*parameterization=v"
    ):
        Denoiser(nn.Identity(), schedule, read)


@pytest.mark.parametrize("schedule", [Flow(), Linear(zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("read", [X0(), V(), Velocity()], **names)
def test_what_can_is_not(read, schedule):
    Denoiser(nn.Identity(), schedule, read)


class Recorder(nn.Module):
    """Remembers what it was called with; its output has `factor` times the channels of its input."""

    def __init__(self, factor=1):
        super().__init__()
        self.factor = factor

    def forward(self, x_t, label, cond):
        self.seen = (x_t, label, cond)
        return torch.cat([x_t * (i + 1) for i in range(self.factor)], 1)


@pytest.mark.parametrize(
    "t", [torch.tensor(0.25, dtype=torch.float64), torch.tensor([0.25, 0.25], dtype=torch.float64)], ids=["one", "each"]
)
def test_the_network_is_told_the_label_in_float32(t):
    network, x = Recorder(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    estimate = Denoiser(network, Cosine(), Epsilon())(x, t, "condition")
    torch.testing.assert_close(network.seen[0], x, rtol=1e-15, atol=0)
    assert network.seen[2] == "condition"
    assert network.seen[1].dtype == torch.float32 and network.seen[1].tolist() == [249.0, 249.0]
    assert estimate.frac is None and estimate.x0.dtype == torch.float64


def test_the_raw_variance_output_becomes_a_fraction():
    """Trap 3: (out + 1)/2, not clamped."""
    x = torch.randn(2, 3, 4, 4)
    estimate = Denoiser(Recorder(2), Cosine(), Epsilon(), learned_variance=True)(x, torch.tensor([0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(estimate.frac, (2 * x + 1) / 2)
    assert torch.equal(estimate.eps, x) and estimate.frac.min() < 0 and estimate.frac.max() > 1


@pytest.mark.parametrize(("factor", "learned"), [(1, True), (2, False), (3, False)])
def test_a_wrong_number_of_channels_is_refused(factor, learned):
    with pytest.raises(ValueError, match="twice the channels"):
        Denoiser(Recorder(factor), Cosine(), V(), learned)(torch.randn(2, 4, 4, 4), torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("read", EVERY, **names)
def test_half_precision_weights_keep_the_state_in_float32(read):
    class Half(nn.Module):
        def forward(self, x_t, label, cond):
            return x_t.bfloat16()

    estimate = Denoiser(Half(), Cosine(), read)(torch.randn(2, 3, 4, 4), torch.tensor(1.0, dtype=torch.float64))
    assert estimate.x0.dtype == estimate.eps.dtype == torch.float32


def test_null_conditions():
    assert null(torch.tensor([0, 3])).tolist() == [-1, -1]
    assert null(torch.ones(2, 5)).tolist() == [[0.0] * 5] * 2
