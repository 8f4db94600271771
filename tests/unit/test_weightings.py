"""Weights of the loss: the papers' formulas for each parameterization, and one loss however the network speaks."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.objectives import Simple, Uncertainty
from diffusion.parameterization import EDM as EDMReading
from diffusion.parameterization import X0, Epsilon, ScaledScore, Score, V, Velocity
from diffusion.schedules import EDM as EDMSchedule
from diffusion.schedules import Cosine, Flow, Linear
from diffusion.typing import expand
from diffusion.weightings import EDM, P2, MinSNR, SoftMinSNR, TruncatedSNR

F64 = {"dtype": torch.float64}
READS = [Epsilon(), X0(), V(), Score(), Velocity(), ScaledScore(), EDMReading()]
WEIGHTINGS = [MinSNR(), MinSNR(1.0), SoftMinSNR(), TruncatedSNR(), P2(), EDM()]
T = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.999], **F64)


def snr(schedule) -> torch.Tensor:
    alpha, sigma = schedule(T)
    return alpha**2 / sigma**2


def test_min_snr_is_right_for_each_parameterization():
    """2303.09556 sec. 3.4: min(SNR, g)/SNR for eps, min(SNR, g) for x_0, min(SNR, g)/(SNR + 1) for v (trap 32)."""
    s = snr(Linear())
    least = torch.minimum(s, torch.full_like(s, 5.0))
    for read, want in ((Epsilon(), least / s), (X0(), least), (V(), least / (s + 1))):
        torch.testing.assert_close(MinSNR(5.0).native(Linear(), read, T), want, rtol=1e-12, atol=0)


def test_eps_with_zero_terminal_snr_is_refused():
    """0/0 there; v and x_0 are not."""
    schedule = Linear(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="Epsilon prediction cannot be used with Linear"):
        Denoiser(nn.Identity(), schedule, Epsilon())
    end = torch.ones(1, **F64)
    assert MinSNR().native(schedule, V(), end) == 0 and MinSNR().native(schedule, X0(), end) == 0
    for weighting in WEIGHTINGS:
        assert weighting.native(schedule, V(), end).isfinite()


def test_the_others_are_their_papers():
    s = snr(Cosine())
    torch.testing.assert_close(P2(0.5, 1.0).native(Cosine(), Epsilon(), T), (1 + s) ** -0.5, rtol=1e-12, atol=0)
    torch.testing.assert_close(SoftMinSNR(5.0).native(Cosine(), X0(), T), 1 / (1 / s + 1 / 5), rtol=1e-12, atol=0)
    torch.testing.assert_close(TruncatedSNR().native(Cosine(), X0(), T), s.clamp(min=1), rtol=1e-12, atol=0)
    edm = EDMSchedule()
    _, sigma = edm(T)
    torch.testing.assert_close(EDM(0.4).native(edm, X0(), T), (sigma**2 + 0.16) / (0.4 * sigma) ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(EDM(0.4).native(edm, EDMReading(0.4), T), torch.ones(5, **F64), rtol=1e-12, atol=0)


class Fixed(nn.Module):
    """A network that says the same x_0 = 0.3 x_t in any words."""

    def __init__(self, read, schedule):
        super().__init__()
        self.read, self.schedule = read, schedule

    def forward(self, x, label, cond):
        alpha, sigma = (expand(v, x) for v in self.schedule(T))
        x_t = x / self.read.scale_in(alpha, sigma)
        return self.read.target(0.3 * x_t, (x_t - alpha * 0.3 * x_t) / sigma, alpha, sigma)


@pytest.mark.parametrize("schedule", [Cosine(), EDMSchedule(), Flow()], ids=repr)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_a_weighted_loss_does_not_depend_on_the_parameterization(weighting, schedule):
    """It is w(SNR) ||x0_hat - x_0||^2 in all seven."""
    x0, eps = torch.randn(2, 5, 1, 2, 2, generator=torch.Generator().manual_seed(0), **F64)
    alpha, sigma = schedule(T)
    x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    want = weighting(schedule.log_snr(T)) * ((0.3 * x_t - x0) ** 2).flatten(1).mean(1)
    for read in READS:
        if not (read.needs_signal and schedule.reaches_noise):
            losses = Simple(weighting)(Denoiser(Fixed(read, schedule), schedule, read), x0, T, eps)
            torch.testing.assert_close(losses["loss"], want, rtol=1e-6, atol=0)


def test_edm_s_loss_is_the_network_s_own_error():
    """EDM eq. 8: lambda c_out^2 = 1, so the weighted loss is the plain one."""
    x0, eps = torch.randn(2, 5, 1, 2, 2, generator=torch.Generator().manual_seed(0), **F64)
    losses = Simple(EDM())(Denoiser(Fixed(EDMReading(), EDMSchedule()), EDMSchedule(), EDMReading()), x0, T, eps)
    torch.testing.assert_close(losses["loss"], losses["simple"], rtol=1e-9, atol=0)


def test_preconditioning_has_unit_variance_in_and_out():
    """EDM app. B.6, by Monte Carlo, at alpha = 1 and on another path: c_in x_t and the target both have variance 1."""
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    x0, eps = 0.5 * torch.randn(n, generator=generator, **F64), torch.randn(n, generator=generator, **F64)
    for schedule in (EDMSchedule(), Cosine(), Flow()):
        for t in T:
            alpha, sigma = schedule(t)
            read = EDMReading(0.5)
            for value in (read.scale_in(alpha, sigma) * (alpha * x0 + sigma * eps), read.target(x0, eps, alpha, sigma)):
                assert abs(value.var().item() - 1) < 5 * (2 / n) ** 0.5


def test_edm_s_preconditioning_is_table_1():
    sigma, one = EDMSchedule()(T)[1], torch.ones(5, **F64)
    x_t, out = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), **F64)
    sd, w2 = 0.5, sigma**2 + 0.25
    torch.testing.assert_close(EDMReading(sd).scale_in(one, sigma), 1 / w2.sqrt(), rtol=1e-12, atol=0)
    want = sd**2 / w2 * x_t + sigma * sd / w2.sqrt() * out
    torch.testing.assert_close(EDMReading(sd).x0(out, x_t, one, sigma), want, rtol=1e-12, atol=1e-14)


def test_uncertainty_learns_the_logarithm_of_the_loss():
    """EDM2 eq. 15: L/exp(u) + u is least at u = log L; and at its start it is L."""

    class Known:
        learned_variance = False

        def __call__(self, denoiser, x0, t, eps, cond=None):
            return {"loss": (1 + 9 * t).float(), "simple": t.float()}

    torch.manual_seed(0)
    objective, schedule = Uncertainty(Known(), channels=64), Cosine()
    denoiser = Denoiser(nn.Identity(), schedule, V())
    t = torch.rand(256, **F64).clamp(min=0.05)
    first = objective(denoiser, None, t, None)
    torch.testing.assert_close(first["loss"], (1 + 9 * t).float())
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        objective(denoiser, None, t, None)["loss"].mean().backward()
        optimizer.step()
    last = objective(denoiser, None, t, None)
    assert (last["log_variance"] - (1 + 9 * t).log()).abs().max() < 0.1
    assert objective.log_variance(torch.tensor([torch.inf, -torch.inf])).isfinite().all()
