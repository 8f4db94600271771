"""The bound with a fixed variance (DDPM eq. 12): torch.distributions, the weights of eps's error in betas, and one number by two ways."""

import json
from math import log

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffusion.checkpoint import load
from diffusion.codecs import Pixels
from diffusion.conditions import Unconditional
from diffusion.data import ImageSet
from diffusion.denoiser import Denoiser
from diffusion.likelihood import prior_term
from diffusion.metrics import VariationalBits
from diffusion.noise import SeededNoise
from diffusion.objectives import VLB, Simple, Uncertainty, check
from diffusion.parameterization import X0, Epsilon, Score, V, Velocity
from diffusion.schedules import Cosine, Flow, Linear
from diffusion.support.build import build
from diffusion.training.run import train

F64 = {"dtype": torch.float64}
T = 25
SCHEDULE = Cosine(T)
HUGE = {"_target_": "diffusion.objectives.VLB", "variance": "huge"}
WORDS = ["fixed_small", "fixed_large"]
READS = [Epsilon(), X0(), V(), Score(), Velocity()]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


class Says(nn.Module):
    """A network that means eps_hat = eps + 0.3 sin(label), in the words of any parameterization."""

    def __init__(self, read, x0: torch.Tensor, eps: torch.Tensor):
        super().__init__()
        self.read, self.x0, self.eps = read, x0, eps
        self.scale = nn.Parameter(torch.ones((), **F64))

    def forward(self, x, label, cond):
        alpha, sigma = (v[:, None, None, None] for v in SCHEDULE((label.double() + 1) / T))
        eps = self.eps + 0.3 * self.scale * (label.double()[:, None, None, None] + self.eps).sin()
        return self.read.target((alpha * self.x0 + sigma * (self.eps - eps)) / alpha, eps, alpha, sigma)


def betas(variance: str) -> tuple[torch.Tensor, ...]:
    """(beta, alpha, abar, the reverse variance, beta tilde) of DDPM, t = 1..T, in betas; beta tilde of the first step is the second's."""
    beta = SCHEDULE.betas()
    abar = (1 - beta).cumprod(0)
    small = beta[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    small = torch.cat([small[:1], small])
    return beta, 1 - beta, abar, small if variance == "fixed_small" else beta, small


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_0 of 256 levels, t, eps) with every step once."""
    return (randn(T, 2, 3, 3, seed=3).clamp(-1, 1) * 127.5).round() / 127.5, torch.arange(1, T + 1, **F64) / T, randn(T, 2, 3, 3)


@pytest.mark.parametrize("read", READS, ids=lambda read: type(read).__name__)
@pytest.mark.parametrize("variance", WORDS)
def test_a_term_is_eps_s_error_by_ddpm_s_weight(variance, read):
    """DDPM eq. 12 and document 003 eq. 30: beta^2/(2 sigma^2 alpha (1 - abar)) ||eps - eps_theta||^2, and the constant of a variance that
    is not the posterior's, whatever the network speaks."""
    x0, t, eps = batch()
    network = Says(read, x0, eps)
    losses = VLB(variance=variance)(Denoiser(network, SCHEDULE, read), x0, t, eps)
    beta, alpha, abar, chosen, small = (v[1:] for v in betas(variance))
    error = (0.3 * (torch.arange(1, T)[:, None, None, None] + eps[1:]).sin()) ** 2
    ratio = chosen / small
    want = beta**2 / (2 * chosen * alpha * (1 - abar)) * error.mean((1, 2, 3)) + 0.5 * (ratio.log() - 1 + 1 / ratio)
    torch.testing.assert_close(losses["vlb"][1:], want / log(2), rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(losses["loss"], T * losses["vlb"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance", WORDS)
def test_every_term_is_torch_distributions(variance):
    """The KL of Gaussians with DDPM's means (eq. 7), and the first step's decoder."""
    x0, t, eps = batch()
    beta, alpha, abar, chosen, small = (v[:, None, None, None] for v in betas(variance))
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    guess = eps + 0.3 * (torch.arange(T)[:, None, None, None] + eps).sin()
    mean = beta * before.sqrt() / (1 - abar) * x0 + (1 - before) * alpha.sqrt() / (1 - abar) * x_t
    theirs = (x_t - beta / (1 - abar).sqrt() * guess) / alpha.sqrt()
    kl = kl_divergence(Normal(mean, small.sqrt().expand_as(mean)), Normal(theirs, chosen.sqrt().expand_as(mean)))[1:]
    p = Normal(theirs[:1], chosen[:1].sqrt())
    upper, lower = p.cdf(x0[:1] + 1 / 255), p.cdf(x0[:1] - 1 / 255)
    mass = torch.where(x0[:1] > 0.999, 1 - lower, torch.where(x0[:1] < -0.999, upper, upper - lower))
    want = torch.cat([-mass.clamp(min=1e-12).log(), kl]).mean((1, 2, 3)) / log(2)
    got = VLB(variance=variance)(Denoiser(Says(V(), x0, eps), SCHEDULE, V()), x0, t, eps)["vlb"]
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_the_bound_trains_the_mean_by_its_weight():
    """The gradient too: that of L_simple times the weight, step by step; and it is that of no other variance."""
    x0, t, eps = batch()

    def gradient(objective, i):
        network = Says(Epsilon(), x0[i : i + 1], eps[i : i + 1])
        objective(Denoiser(network, SCHEDULE, Epsilon()), x0[i : i + 1], t[i : i + 1], eps[i : i + 1])["loss"].sum().backward()
        return network.scale.grad.item()

    for variance in WORDS:
        beta, alpha, abar, chosen, _ = betas(variance)
        for i in (1, 7, T - 1):
            weight = (T * beta**2 / (2 * chosen * alpha * (1 - abar)) / log(2))[i].item()
            assert gradient(VLB(variance=variance), i) == pytest.approx(weight * gradient(Simple(), i), rel=1e-6)


class Rough(nn.Module):
    """Some network without weights."""

    def forward(self, x, label, cond):
        return 0.7 * x + 0.1 * (label / T)[:, None, None, None].to(x)


@pytest.mark.parametrize("said", [None, *WORDS])
def test_the_metric_is_the_objective_s_number(said):
    """The mean of all T terms of the training's loss, each at the metric's own x_t, and L_T, are nll-vlb of the same images: by the
    variance that the denoiser was trained with, or by the one that is named."""
    trained = "fixed_small"
    denoiser = Denoiser(Rough(), SCHEDULE, V(), fixed_variance=trained).double()
    pictures = torch.randint(0, 256, (5, 3, 3, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codec = Pixels((3, 3, 1))
    metric = VariationalBits(images=5, clip=False, variance=said)
    metric.setup(ImageSet(pictures.numpy(), None, "noise", "train", 0, ""), "cpu")
    metric.model(denoiser, codec, Unconditional())
    measured = metric.compute()["nll-vlb@5"]
    noise, x0 = SeededNoise(range(5), "cpu"), codec.encode(pictures)
    objective, total = VLB(variance=said or trained), prior_term(SCHEDULE, x0)
    for i in range(1, T + 1):
        t = torch.full((5,), i / T, **F64)
        total = total + objective(denoiser, x0, t, noise(x0))["loss"] / T
    assert measured == pytest.approx(total.mean().item(), rel=1e-6)
    other = VariationalBits(images=5, clip=False, variance="fixed_large" if (said or trained) == "fixed_small" else "fixed_small")
    other.setup(metric.imageset, "cpu")
    other.model(denoiser, codec, Unconditional())
    assert abs(other.compute()["nll-vlb@5"] - measured) > 1e-3
    assert other.passport()["settings"]["variance"] != metric.passport()["settings"].get("variance")


def test_a_run_is_trained_and_measured_by_its_own_bound(tiny, tmp_path):
    """With t drawn by importance, whose history the losses fill; the denoiser of the run's folder says what its bound was."""
    words = ["objective=vlb", "objective.variance=fixed_small", "times=importance", "times.history=2", "schedule.num_timesteps=4"]
    train(tiny(*words, "steps=6", "grid.steps=2", "eval_every=6", "metric=nll_vlb", "metric.nll_vlb.images=4"), tmp_path)
    denoiser = load(tmp_path).denoiser
    assert denoiser.fixed_variance == "fixed_small" and not denoiser.learned_variance
    weights = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert (weights["times.counts"] >= 2).all() and (weights["times.losses"] > 0).all()
    (measured,) = (line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "nll-vlb@4" in line)
    assert "nll-vlb@4/fraction" not in measured and "variance" not in measured["passport"]["settings"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VLB(variance="huge"), r"objective.variance=huge is not one of learned, fixed_small, fixed_large\."),
        (
            lambda: build({"_target_": "diffusion.objectives.VLB", "variance": "huge"}, "objective"),
            r"objective.variance=huge is not one of",
        ),
        (lambda: check(Denoiser(Rough(), Flow(), V()), VLB(variance="fixed_small")), "a sum over discrete time steps, and Flow has none"),
        (lambda: check(Denoiser(Rough(), Flow(), V()), Uncertainty(VLB(variance="fixed_large"))), "Flow has none; use objective=simple"),
        (lambda: check(Denoiser(Rough(), Linear(), V(), True), VLB(variance="fixed_small")), "does not train a learned variance"),
        (lambda: check(Denoiser(Rough(), Linear(), V()), VLB()), "trains a learned variance, and the denoiser has no"),
    ],
)
def test_what_does_not_fit_is_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
