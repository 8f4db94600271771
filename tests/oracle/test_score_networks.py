"""Score networks trained on a Gaussian mixture against its analytic score, and Langevin dynamics against its mode weights."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.grids import Exponential
from diffusion.objectives import DSM, SSM, ExactScoreMatching
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import ScaledScore
from diffusion.samplers import Langevin, last
from diffusion.schedules import VE
from diffusion.times import Uniform

SCHEDULE = VE(8, sigma_min=0.3, sigma_max=3.0)
MIXTURE = GaussianMixture(torch.tensor([[-1.5, 0.0], [1.5, 1.0]]), torch.tensor([0.4, 0.4]), torch.tensor([0.3, 0.7]), SCHEDULE)


class Perceptron(nn.Module):
    """Two hidden layers on (x, label)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, label, cond):
        level = nn.functional.one_hot(label.round().long(), 8).to(x)
        return self.layers(torch.cat([x, level], 1))


def trained_error(objective, steps: int) -> float:
    """E sigma^2 ||s_theta - s||^2 / E sigma^2 ||s||^2 over all levels, after training by the objective on fresh draws."""
    torch.manual_seed(0)
    network = Perceptron()
    denoiser = Denoiser(network, SCHEDULE, ScaledScore())
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x0 = MIXTURE.sample(512).float()
        t, _ = Uniform()(512, SCHEDULE)
        optimizer.zero_grad()
        objective(denoiser, x0, t, torch.randn_like(x0))["loss"].mean().backward()
        optimizer.step()
        decay.step()
    generator = torch.Generator().manual_seed(1)
    x0 = MIXTURE.sample(4000, generator=generator).float()
    t = torch.arange(1, 9, dtype=torch.float64).repeat(500) / 8
    x_t = x0 + SCHEDULE(t)[1].float()[:, None] * torch.randn(4000, 2, generator=generator)
    with torch.no_grad():  # sigma times the score is -eps
        ours, truth = denoiser(x_t, t).eps, MIXTURE(x_t, t).eps
    return (((ours - truth) ** 2).mean() / (truth**2).mean()).item()


@pytest.mark.parametrize(
    ("objective", "steps", "worst"), [(DSM(), 600, 0.02), (SSM(), 600, 0.04), (ExactScoreMatching(), 600, 0.03)], ids=["dsm", "ssm", "ism"]
)
def test_a_trained_score_approaches_the_analytic_one(objective, steps, worst):
    """Measured with this seed: 0.008 by DSM, 0.014 by SSM, 0.012 by the exact trace; an untrained network has about 1."""
    assert trained_error(objective, steps) < worst


# ---- document 003, section 1.2.2: two modes far apart, of weights 1/5 and 4/5 (NCSN sec. 3.2.2's example)

FAR = VE(10, sigma_min=0.1, sigma_max=20.0)
MODES = GaussianMixture(torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), torch.tensor([1.0, 1.0]), torch.tensor([0.2, 0.8]), FAR)


def share_of_the_smaller_mode(times: torch.Tensor, walk: int, n: int = 4000) -> float:
    """By Langevin dynamics along `times`, from points spread evenly over [-8, 8]^2, as in NCSN's figure 3."""
    torch.manual_seed(0)
    x = 16 * torch.rand(n, 2, dtype=torch.float64) - 8
    x = last(Langevin(walk, 0.2)(MODES, x, times)).x
    assert (x.sum(1).abs() > 0.5).double().mean() > 0.99  # near a mode, not between
    return (x.sum(1) < 0).double().mean().item()


def test_annealed_langevin_recovers_the_weights_and_plain_langevin_does_not():
    """Plain Langevin at the smallest level, with as many steps, keeps each point in the basin it began in: nearly one half, where the
    mixture has one fifth. The standard error of 4,000 points is 0.006; the annealed walk is short of equilibrium by a little more.
    Measured: 0.223 annealed, 0.492 plain."""
    ladder = Exponential(10)(FAR)
    annealed = share_of_the_smaller_mode(ladder, 100)
    plain = share_of_the_smaller_mode(ladder[-2:], 1000)
    assert abs(annealed - 0.2) < 0.04
    assert plain > 0.4
