"""Classifier guidance by ADM's algorithm 1: written out in betas on a Gaussian mixture whose classifier is exact, and what it draws."""

import pytest
import torch

from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.denoiser import Estimate
from diffusion.grids import Linspace, Trailing
from diffusion.guidance import Classifier, ClassifierMean, Clip, Interval, Unconditional
from diffusion.model import Model
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, DDPM, Euler, Heun, PredictorCorrector, last
from diffusion.schedules import Linear

F64 = {"dtype": torch.float64}
T = 40
SCHEDULE = Linear(T, beta_start=0.005 / 25, beta_end=0.2 / 25)
MIXTURE = GaussianMixture(
    torch.tensor([[0.9, -0.4], [-0.7, 0.2], [0.1, 0.8]]),
    torch.tensor([0.3, 0.4, 0.25]),
    torch.tensor([0.5, 0.3, 0.2]),
    SCHEDULE,
    torch.tensor([0, 1, 0]),
)
COND = torch.tensor([0, 1, 1, 0, 1])
WORDS = ["fixed_small", "fixed_large", "learned"]


def noises(seed: int = 0):
    stream = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=stream, dtype=x.dtype)


def classifier(mixture: GaussianMixture):
    """The exact log p(c | x_t), up to a constant, of two classes."""

    def log_p(x_t, label):
        t, classes = mixture.schedule.labelled(label), torch.arange(2)[:, None].expand(-1, len(x_t))
        return torch.stack([mixture.log_prob(x_t, t, c) + mixture.log_class_weight(c) for c in classes], 1)

    return log_p


EXACT = classifier(MIXTURE)


class Learned(torch.nn.Module):
    """The mixture without its classes, with a learned variance's fraction."""

    schedule, device, learned_variance = SCHEDULE, torch.device("cpu"), True

    def forward(self, x_t, t, cond=None):
        x0, eps, _ = MIXTURE(x_t, t)
        return Estimate(x0, eps, 0.5 + 0.3 * x_t.tanh())


class Asked:
    """What a sampler calls: a denoiser and its condition."""

    def __init__(self, denoiser, cond):
        self.denoiser, self.cond, self.schedule = denoiser, cond, denoiser.schedule

    def __call__(self, x, t):
        return self.denoiser(x, t, self.cond)


def algorithm_1(x, variance: str, scale: float, steps: int, noise) -> torch.Tensor:
    """ADM alg. 1 on the sub-sequence of the trailing grid, in abar alone, by autograd through the exact log p(c | x_t)."""
    abar = torch.cat([torch.ones(1, **F64), (1 - SCHEDULE.betas()).cumprod(0)])
    knots = [round(T * i / steps) for i in range(steps + 1)]
    betas = {i: 1 - abar[knots[i]] / abar[knots[i - 1]] for i in range(1, steps + 1)}
    smalls = {i: betas[i] * (1 - abar[knots[i - 1]]) / (1 - abar[knots[i]]) for i in betas}
    smalls[1] = smalls[2]  # the clipped variance
    for i in range(steps, 0, -1):
        now, before, beta, small = abar[knots[i]], abar[knots[i - 1]], betas[i], smalls[i]
        t = torch.tensor(knots[i] / T, **F64)
        x0 = MIXTURE(x, t).x0
        mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
        v = 0.5 + 0.3 * x.tanh()
        sigma = {"fixed_small": small + 0 * v, "fixed_large": beta + 0 * v, "learned": (v * beta.log() + (1 - v) * small.log()).exp()}
        leaf = x.detach().requires_grad_()
        log_p = MIXTURE.log_prob(leaf, t, COND) - MIXTURE.log_prob(leaf, t)
        (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
        x = mean + scale * sigma[variance] * gradient
        x = x + sigma[variance].sqrt() * noise(x) if i > 1 else x
    return x


@pytest.mark.parametrize("steps", [T, 8])
@pytest.mark.parametrize("variance", WORDS)
def test_it_is_algorithm_1(variance, steps):
    """Move by move from the same noise, for each variance, on the whole chain and on a sub-sequence of it."""
    x, grid, sampler = noises(7)(torch.empty(5, 2, **F64)), Trailing(steps), DDPM(variance)
    guided = ClassifierMean(Unconditional(Learned()), EXACT, 1.7, sampler=sampler, grid=grid)
    got = last(sampler(Asked(guided, COND), x, grid(SCHEDULE), noises(1))).x
    torch.testing.assert_close(got, algorithm_1(x, variance, 1.7, steps, noises(1)), rtol=1e-7, atol=1e-7)
    by_two = Classifier(Unconditional(Learned()), EXACT, 1.7)
    assert (last(sampler(Asked(by_two, COND), x, grid(SCHEDULE), noises(1))).x - got).abs().max() > 1e-3  # algorithm 2 is another


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_it_draws_the_class(variance):
    """With the exact classifier, scale 1 on the model without classes draws x_0 of the class: its mean within 5 standard errors and the
    error of 120 steps, and its deviation."""
    mixture = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights, Linear(120, beta_start=0.0001, beta_end=0.02), MIXTURE.classes)
    n, sampler, grid = 1500, DDPM(variance), Linspace(120)
    guided = ClassifierMean(Unconditional(mixture), classifier(mixture), 1.0, sampler=sampler, grid=grid)
    asked, start = Asked(guided, torch.zeros(n, dtype=torch.long)), noises(3)(torch.empty(n, 2, **F64))
    drawn = last(sampler(asked, start, grid(mixture.schedule), noises(4))).x
    first, all_ = (mixture.sample(200_000, c, torch.Generator().manual_seed(0)) for c in (torch.zeros(200_000, dtype=torch.long), None))
    assert (drawn.mean(0) - first.mean(0)).abs().max() < 5 * first.std(0).max() / n**0.5 + 0.02
    assert (drawn.std(0) / first.std(0) - 1).abs().max() < 0.08
    assert (drawn.mean(0) - all_.mean(0)).abs().max() > 0.2  # unguided it is another


def test_one_time_for_all_is_the_same_as_one_for_each():
    """And eps follows from x_0, the null condition is not guided, scale 0 is the model, and the ends of a grid are finite."""
    x, grid = noises(7)(torch.empty(5, 2, **F64)), Trailing(8)
    guided = ClassifierMean(Unconditional(Learned()), EXACT, 2.0, sampler=DDPM("learned"), grid=grid)
    t = grid(SCHEDULE)[2]
    one, each = guided(x, t, COND), guided(x, t.expand(5), COND)
    torch.testing.assert_close(one.x0, each.x0, rtol=1e-10, atol=1e-12)
    alpha, sigma = SCHEDULE(t)
    torch.testing.assert_close(alpha * one.x0 + sigma * one.eps, x, rtol=1e-10, atol=1e-12)
    plain = Learned()(x, t)
    assert torch.equal(guided(x, t, torch.full((5,), -1)).x0, plain.x0) and torch.equal(one.frac, plain.frac)
    none = ClassifierMean(Unconditional(Learned()), EXACT, 0.0, sampler=DDPM(), grid=grid)
    assert torch.equal(none(x, t, COND).x0, plain.x0)
    ends = [guided(x, time, COND).x0 for time in (grid(SCHEDULE)[-2], Trailing(1)(SCHEDULE)[0])]
    assert all(end.isfinite().all() for end in ends)
    alone = ClassifierMean(Unconditional(Learned()), EXACT, 2.0, sampler=DDPM("learned"), grid=Trailing(1))
    assert alone(x, torch.ones((), **F64), COND).x0.isfinite().all()
    around = Clip(Interval(guided, 0.0, 1e9), -0.2, 0.2)(x, t, COND)
    assert around.x0.abs().max() <= 0.2


def test_a_recipe_tells_it_the_sampler_and_the_grid():
    model = Model(Learned(), Pixels((1, 2, 1)), Classes(2))
    stage = {"_target_": "diffusion.guidance.ClassifierMean", "classifier": EXACT, "scale": 2.0}
    recipe = model.recipe(DDPM("fixed_large"), Trailing(8), {"c": stage})
    assert recipe.denoiser.sampler is recipe.sampler and recipe.denoiser.grid is recipe.grid
    assert "sampler" not in recipe.describe()["guidance"]  # a passport says it once
    for sampler, name in ((DDIM(1.0), "DDIM"), (Euler(), "Euler"), (Heun(), "Heun"), (PredictorCorrector(), "PredictorCorrector")):
        with pytest.raises(ValueError, match=rf"around, on its grid, and {name} draws otherwise: say sampler=ddpm, or guidance=\[class"):
            model.recipe(sampler, Trailing(8), {"c": stage})
    with pytest.raises(ValueError, match="sampler=ddpm"):
        ClassifierMean(Learned(), EXACT)
