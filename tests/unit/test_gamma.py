"""L_gamma, with any weights of eps's error (DDIM eq. 5), and the weights of DDIM's theorem 1."""

from math import log, pi

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffusion.denoiser import Denoiser
from diffusion.objectives import VLB, Simple, Uncertainty, check
from diffusion.parameterization import X0, Epsilon, V, Velocity
from diffusion.posterior import step
from diffusion.schedules import Cosine, Flow, Linear
from diffusion.support.build import build
from diffusion.training.run import train
from diffusion.weightings import DDIMBound, PerStep

F64 = {"dtype": torch.float64}
T = 20
SCHEDULE = Linear(T, beta_start=0.001 / 50, beta_end=0.004)
READS = [Epsilon(), X0(), V(), Velocity()]
EPSILON = Epsilon()
ONE_TO_T = torch.arange(1, T + 1, **F64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


class Says(nn.Module):
    """eps_hat = f(x_t), in the words of any parameterization."""

    def __init__(self, read, wave: float):
        super().__init__()
        self.read, self.wave = read, wave

    def forward(self, x_t, label, cond):
        alpha, sigma = (v[:, None] for v in SCHEDULE((label.double() + 1) / T))
        eps = (self.wave * x_t).sin()
        return self.read.target((x_t - sigma * eps) / alpha, eps, alpha, sigma)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(T, 6), ONE_TO_T / T, randn(T, 6, seed=1)


def error(x0: torch.Tensor, eps: torch.Tensor, wave: float) -> torch.Tensor:
    """||eps - eps_theta||^2 of each step, a mean over dimensions."""
    abar = (1 - SCHEDULE.betas()).cumprod(0)[:, None]
    return ((eps - (wave * (abar.sqrt() * x0 + (1 - abar).sqrt() * eps)).sin()) ** 2).mean(1)


@pytest.mark.parametrize("read", READS, ids=lambda read: type(read).__name__)
def test_each_step_counts_by_its_own_number(read):
    """Of eps's error, whatever the network speaks; and one number for all is that number for each."""
    x0, t, eps = batch()
    gamma = (0.1 + randn(T, seed=2) ** 2).tolist()
    denoiser = Denoiser(Says(read, 1.3), SCHEDULE, read)
    got = Simple(PerStep(gamma))(denoiser, x0, t, eps)["loss"]
    torch.testing.assert_close(got, torch.tensor(gamma, **F64) * error(x0, eps, 1.3), rtol=1e-8, atol=0)
    same = Simple(PerStep([0.7] * T))(denoiser, x0, t, eps)["loss"]
    torch.testing.assert_close(Simple(PerStep(0.7))(denoiser, x0, t, eps)["loss"], same, rtol=1e-12, atol=0)


def test_gamma_1_is_l_simple():
    x0, t, eps = batch()
    denoiser = Denoiser(Says(EPSILON, 0.8), SCHEDULE, EPSILON)
    torch.testing.assert_close(Simple(PerStep())(denoiser, x0, t, eps)["loss"], Simple()(denoiser, x0, t, eps)["loss"], rtol=1e-12, atol=0)


def gamma_of(eta: float) -> torch.Tensor:
    """The theorem's gamma_t in betas: sigma_t by DDIM eq. 16, and c_t^2/(2 sigma_t^2) with c_t what eps's error moves the mean by.
    sigma_1 is sigma_2."""
    beta = SCHEDULE.betas()
    abar = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, **F64), abar[:-1]])
    sigma = eta * ((1 - before) / (1 - abar)).sqrt() * (1 - abar / before).sqrt()
    moved = before.sqrt() * (1 - abar).sqrt() / abar.sqrt() - (1 - before - sigma**2).clamp(min=0).sqrt()
    sigma = torch.cat([sigma[1:2], sigma[1:]])
    return moved**2 / (2 * sigma**2)


@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_ddim_s_sigma_gives_the_theorem_s_gamma(eta):
    """DDIM theorem 1: the weights are L_gamma's with gamma_t(sigma), which a list says too."""
    x0, t, eps = batch()
    denoiser = Denoiser(Says(V(), 1.3), SCHEDULE, V())
    by_name = Simple(DDIMBound(eta))(denoiser, x0, t, eps)["loss"]
    by_list = Simple(PerStep(gamma_of(eta).tolist()))(denoiser, x0, t, eps)["loss"]
    torch.testing.assert_close(by_name, by_list, rtol=1e-7, atol=0)
    torch.testing.assert_close(by_name, gamma_of(eta) * error(x0, eps, 1.3), rtol=1e-7, atol=0)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_it_is_the_bound_of_ddim_s_process_but_for_a_constant(eta):
    """By torch.distributions, with moves made by `step`: L_t(theta) - gamma_t ||eps - eps_theta||^2 is 0 for every eps_theta, and at t = 1
    what a Gaussian's density has before its exponential."""
    x0, t, eps = batch()
    for wave in (0.4, 1.3):
        weighted, terms = Simple(DDIMBound(eta))(Denoiser(Says(EPSILON, wave), SCHEDULE, EPSILON), x0, t, eps)["loss"], []
        for i, now in enumerate(t):
            alpha, sigma = SCHEDULE(now)
            x_t = alpha * x0[i] + sigma * eps[i]
            guess, second = (x_t - sigma * (wave * x_t).sin()) / alpha, max(now, t[1])
            deviation = step(0 * x_t, 0 * x_t, second, second - 1 / T, SCHEDULE, eta, torch.ones_like)
            q, p = (Normal(step(x_t, x, now, now - t[0], SCHEDULE, eta, torch.zeros_like), deviation) for x in (x0[i], guess))
            terms.append((kl_divergence(q, p) if i else -p.log_prob(x0[i])).mean())
        constants = torch.tensor([entropy(eta), *[0.0] * (T - 1)], **F64)
        torch.testing.assert_close(torch.stack(terms) - weighted, constants, rtol=1e-7, atol=1e-9)


def entropy(eta: float) -> float:
    """log(sqrt(2 pi) sigma_2), sigma_2 by DDIM eq. 16."""
    abar = (1 - SCHEDULE.betas()).cumprod(0)
    sigma = eta * ((1 - abar[0]) / (1 - abar[1])).sqrt() * (1 - abar[1] / abar[0]).sqrt()
    return 0.5 * log(2 * pi) + sigma.log().item()


def test_with_eta_1_it_is_ddpm_s_bound_with_fixed_small():
    """Another way: the objective of the bound itself, of data without levels, in bits."""
    x0, t, eps = batch()
    differences = []
    for wave in (0.4, 1.3):
        denoiser = Denoiser(Says(EPSILON, wave), SCHEDULE, EPSILON)
        bound = log(2) * VLB(span=None, variance="fixed_small")(denoiser, x0, t, eps)["vlb"]
        differences.append(bound - Simple(DDIMBound())(denoiser, x0, t, eps)["loss"])
    torch.testing.assert_close(*differences, rtol=1e-7, atol=1e-9)
    assert differences[0][1:].abs().max() < 1e-9


@pytest.mark.parametrize(
    "words", [["objective=gamma", "objective.weighting.gamma=[3,1,0.5]"], ["objective=ddim_bound", "times=importance"]]
)
def test_it_trains(tiny, tmp_path, words):
    assert train(tiny(*words, "parameterization=v", "schedule.num_timesteps=3", "grid.steps=2", "steps=2"), tmp_path)


@pytest.mark.parametrize(
    ("objective", "schedule", "said"),
    [
        (
            Simple(PerStep([1.0, 2.0])),
            Cosine(10),
            r"objective.weighting.gamma has 2 numbers and Cosine 10 time steps: say one for each step",
        ),
        (Uncertainty(Simple(PerStep([1.0, 2.0]))), Cosine(10), "2 numbers and Cosine 10 time steps"),
        (Simple(PerStep()), Flow(), "objective Simple is a sum over discrete time steps, and Flow has none"),
        (Simple(DDIMBound()), Flow(), "objective Simple is a sum over discrete time steps, and Flow has none"),
        (Uncertainty(Simple(DDIMBound())), Flow(), "objective Uncertainty is a sum over discrete time steps"),
    ],
)
def test_weights_that_are_not_the_schedule_s_are_refused(objective, schedule, said):
    with pytest.raises(ValueError, match=said):
        check(Denoiser(nn.Identity(), schedule, V()), objective)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"objective.weighting.gamma\[1\]=-2 must be at least 0"):
        build({"_target_": "diffusion.weightings.PerStep", "gamma": [1, -2]}, "objective.weighting")
    with pytest.raises(ValueError, match=r"objective.weighting.eta=0.0 must be above 0 and at most 1"):
        build({"_target_": "diffusion.weightings.DDIMBound", "eta": 0.0}, "objective.weighting")
    with pytest.raises(ValueError, match="Flow has none; use a discrete schedule"):
        PerStep().at(Flow(), torch.ones(1, **F64))
