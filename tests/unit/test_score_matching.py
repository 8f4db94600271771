"""Score-matching objectives on a model whose score, and its Jacobian, are written by hand."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.networks import UNet
from diffusion.objectives import DSM, SSM, ExactScoreMatching
from diffusion.parameterization import Epsilon, ScaledScore, Score
from diffusion.schedules import VE, VESDE, Cosine, SubVP
from diffusion.typing import expand

F64 = {"dtype": torch.float64}
N, D = 6, 3
A = torch.tensor([[-1.0, 0.3, 0.1], [0.2, -0.7, 0.0], [-0.4, 0.5, -1.3]], **F64)
T = torch.linspace(0.1, 0.9, N, **F64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


class Known(nn.Module):
    """s(x) = A x + sin(x) / 2, in any words: its Jacobian is A + diag(cos(x) / 2)."""

    def __init__(self, read, schedule, matrix=A):
        super().__init__()
        self.read, self.schedule, self.matrix = read, schedule, matrix

    def forward(self, x, label, cond):
        alpha, sigma = (expand(v, x) for v in self.schedule(T))
        x_t = x / self.read.scale_in(alpha, sigma)
        eps = -sigma * (x_t @ self.matrix.T + x_t.sin() / 2)
        return self.read.target((x_t - sigma * eps) / alpha, eps, alpha, sigma)


def problem(schedule):
    x0, eps = randn(N, D), randn(N, D, seed=1)
    alpha, sigma = (v[:, None] for v in schedule(T))
    x_t = alpha * x0 + sigma * eps
    return x0, eps, x_t, alpha, sigma, x_t @ A.T + x_t.sin() / 2, A.trace() + x_t.cos().sum(1) / 2


@pytest.mark.parametrize("schedule", [VE(), VESDE(), Cosine(), SubVP()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("read", [Score(), ScaledScore(), Epsilon()], ids=lambda r: type(r).__name__)
def test_dsm_and_the_exact_trace_are_their_equations(read, schedule):
    """NCSN eq. 5 (in x_t and x_0, over the dimensions), and Hyvarinen's trace form, both times sigma^2."""
    x0, eps, x_t, alpha, sigma, score, trace = problem(schedule)
    denoiser = Denoiser(Known(read, schedule), schedule, read)
    eq_5 = 0.5 * sigma**2 * (score + (x_t - alpha * x0) / sigma**2) ** 2
    torch.testing.assert_close(DSM()(denoiser, x0, T, eps)["loss"], eq_5.mean(1), rtol=1e-8, atol=1e-10)
    flat = 0.5 * (score + (x_t - alpha * x0) / sigma**2) ** 2
    torch.testing.assert_close(DSM(power=0.0)(denoiser, x0, T, eps)["loss"], flat.mean(1), rtol=1e-8, atol=1e-10)
    ism = sigma[:, 0] ** 2 * (trace + 0.5 * (score**2).sum(1)) / D
    torch.testing.assert_close(ExactScoreMatching()(denoiser, x0, T, eps)["loss"], ism, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reduced", [True, False])
def test_ssm_estimates_the_trace_form(reduced):
    """Its mean over v, within five standard errors of 400 groups of 50 projections."""
    schedule = VE()
    x0, eps, *_ = problem(schedule)
    denoiser = Denoiser(Known(Score(), schedule), schedule, Score())
    exact = ExactScoreMatching()(denoiser, x0, T, eps)["loss"].detach()
    torch.manual_seed(0)
    draws = torch.stack([SSM(50, reduced)(denoiser, x0, T, eps)["loss"].detach() for _ in range(400)])
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 20).all()


def test_a_diagonal_derivative_adds_no_variance():
    """v_i^2 = 1: one projection is the trace, where with v ~ N(0, I) its variance would be twice the sum of the squares."""
    x0, eps, *_ = problem(VE())
    denoiser = Denoiser(Known(Score(), VE(), A.diag().diag()), VE(), Score())
    exact = ExactScoreMatching()(denoiser, x0, T, eps)["loss"]
    torch.testing.assert_close(SSM()(denoiser, x0, T, eps)["loss"], exact, rtol=1e-12, atol=1e-12)


def test_ssm_trains_the_unet():
    """Through attention, which has no fused second derivative; every weight that moves the output gets a finite gradient."""
    torch.manual_seed(0)
    network = UNet(1, 1, 8, channels=8, multipliers=[1, 2], res_blocks=1, attention=[4], heads=1)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    x0, eps = randn(N, 1, 8, 8).float(), randn(N, 1, 8, 8, seed=1).float()
    for objective in (SSM(), SSM(2, reduced=False)):
        network.zero_grad()
        objective(Denoiser(network, VE(), ScaledScore()), x0, T, eps)["loss"].mean().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients) and any((g != 0).any() for g in gradients)
