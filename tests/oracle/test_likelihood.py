"""Bits per dimension against models whose likelihood is known in closed form."""

from dataclasses import dataclass
from math import log, pi, sqrt

import pytest
import torch

from diffusion.codecs import Pixels, Standardised
from diffusion.denoiser import Estimate
from diffusion.likelihood import bin_width, bits_per_dimension, dequantised, flow_log_likelihood, prior_term, variational_bound
from diffusion.objectives import discretised_log_likelihood, log_density
from diffusion.oracles import GaussianMixture
from diffusion.posterior import posterior
from diffusion.samplers import RK45
from diffusion.schedules import VE, Cosine, Flow, Linear
from diffusion.typing import expand

WIDTH = 2 / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(seed=0):
    stream = generator(seed)
    return lambda x: torch.randn(x.shape, generator=stream, dtype=x.dtype)


@dataclass(frozen=True)
class LinearGaussian:
    """x_0 ~ N(mean, std^2 I), with the variance that makes every reverse step exactly p(x_s | x_t), not a bound of it.

    p(x_s | x_t) has the posterior's variance plus c^2 Var(x_0 | x_t), c the posterior's factor of x_0; frac is solved for."""

    mean: float
    std: float
    schedule: Linear

    def __call__(self, x_t, t, cond=None):
        oracle = GaussianMixture(torch.full((1, *x_t.shape[1:]), self.mean), torch.tensor([self.std]), schedule=self.schedule)
        x0, eps, _ = oracle(x_t, t)
        knot = 1 / self.schedule.num_timesteps
        s = t - knot
        (alpha, sigma), one = self.schedule(t), torch.ones_like(x_t)
        left = self.std**2 * sigma**2 / (alpha**2 * self.std**2 + sigma**2)  # Var(x_0 | x_t)
        factor = posterior(0 * one, one, t, s, self.schedule)[0]
        _, small, large = posterior(x_t, x0, t, s, self.schedule)
        _, second, _ = posterior(x_t, x0, t.clamp(min=2 * knot), s.clamp(min=knot), self.schedule)
        variance = small + factor**2 * expand(left, x_t)
        return Estimate(x0, eps, (variance / second).log() / (large / second).log() * one)


def test_the_bound_is_tight_for_an_exact_linear_gaussian():
    """With every reverse step exact, L_0 + ... + L_T is -log2 of the density times the bin, up to its curvature within a bin."""
    mean, std = 0.1, 0.3
    model = LinearGaussian(mean, std, Cosine(20))
    x0 = mean + std * torch.randn(1000, 64, generator=generator(), dtype=torch.float64)
    bound = variational_bound(model, x0, noise=noise_of(1))
    exact = (0.5 * ((x0 - mean) / std) ** 2 + 0.5 * log(2 * pi * std**2) - log(WIDTH)).mean(1) / log(2)
    gap = bound.bits - exact
    assert gap.std() / sqrt(len(gap)) < 0.006
    # the prior is N(0, 1) and x_1 nearly so; the decoder's bin adds (bin/std)^2/24
    assert abs(gap.mean().item()) < 3 * gap.std().item() / sqrt(len(gap))
    assert bound.terms.shape == (1000, 20) and bound.fraction.shape == (20,)
    torch.testing.assert_close(bound.bits, bound.terms.sum(1) + bound.prior)


def test_the_bound_of_unit_gaussian_data_is_exact_for_each_sample():
    """Data N(0, 1): every marginal is N(0, 1), the reverse variance is the larger one (frac = 1), and L_T's twin is known."""
    model = LinearGaussian(0.0, 1.0, Linear(100))
    frac = model(torch.randn(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)).frac
    torch.testing.assert_close(frac, torch.ones_like(frac), rtol=0, atol=1e-9)


def test_the_prior_term_is_the_kl_of_torch():
    for schedule in (Linear(100), Cosine(), VE(), Flow()):
        x0 = torch.randn(5, 3, dtype=torch.float64, generator=generator())
        alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
        q = torch.distributions.Normal(alpha * x0, sigma)
        p = torch.distributions.Normal(torch.zeros_like(x0), (alpha**2 + sigma**2).sqrt())
        expected = torch.distributions.kl_divergence(q, p).mean(1) / log(2)
        torch.testing.assert_close(prior_term(schedule, x0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), VE(sigma_max=80.0), Flow()], ids=lambda s: type(s).__name__)
def test_the_ode_is_exact_for_a_gaussian(schedule):
    """df/dz is a multiple of I, so that Hutchinson's estimate is exact and only the solver and the prior err."""
    std, mean, t_min = 0.5, 0.2, 1e-3
    oracle = GaussianMixture(torch.full((1, 3), mean), torch.tensor([std]), schedule=schedule)
    x = mean + std * torch.randn(20, 3, generator=generator(), dtype=torch.float64)
    ours = flow_log_likelihood(oracle, x, noise=noise_of(1), solver=RK45(1e-8, 1e-8), t_min=t_min)
    # the flow carries N(alpha mean, v) along, v = alpha^2 std^2 + sigma^2: x_1 is x's quantile in the last of these Gaussians
    (alpha, v, _), (alpha_1, v_1, norm_1) = (gaussian(schedule, time, std) for time in (t_min, 1.0))
    z = (alpha_1 * mean + (v_1 / v).sqrt() * alpha * (x - mean)) / norm_1
    model = torch.distributions.Normal(0, 1).log_prob(z).sum(1) + 3 * ((v_1 / v).sqrt() * alpha / norm_1).log()
    torch.testing.assert_close(ours, model, rtol=0, atol=1e-6)
    # and but for the prior, which is N(0, 1) and not the last Gaussian, this is the data's density
    data = torch.distributions.Normal(alpha * mean, v.sqrt()).log_prob(alpha * x).sum(1) + 3 * alpha.log()
    torch.testing.assert_close(ours, data, rtol=0, atol=2e-2)


def gaussian(schedule, time, std):
    alpha, sigma = schedule(torch.tensor(time, dtype=torch.float64))
    return alpha, alpha**2 * std**2 + sigma**2, (alpha**2 + sigma**2).sqrt()


@pytest.fixture(scope="module")
def mixture():
    means = torch.tensor([[-0.6, 0.3], [0.4, -0.2], [0.1, 0.7]])
    return GaussianMixture(means, torch.tensor([0.1, 0.15, 0.08]), torch.tensor([0.5, 0.3, 0.2]), schedule=Cosine())


def entropy(oracle):
    """-int p log2 p / D by a sum over a fine grid: the analytic answer for a density that is smooth on the grid's scale."""
    axis = torch.linspace(-1.8, 1.8, 721, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = oracle.log_prob(grid, torch.zeros((), dtype=torch.float64))
    assert (log_p.exp().sum() * 0.005**2).item() == pytest.approx(1, abs=1e-9)
    return -(log_p.exp() * log_p).sum().item() * 0.005**2 / (2 * log(2))


def test_the_mixtures_entropy_lies_within_the_odes_error_and_below_the_bound(mixture):
    x = mixture.sample(600, generator=generator())
    log_p = flow_log_likelihood(mixture, x, noise=noise_of(1), solver=RK45(1e-5, 1e-5), t_min=1e-3)
    bits = -log_p / (2 * log(2))
    error = bits.std().item() / sqrt(len(bits))
    assert bits.mean().item() == pytest.approx(entropy(mixture), abs=3 * error)
    # sharper, image by image: what Hutchinson's vector adds has no bias, and its own error is smaller than the images'
    gap = bits + mixture.log_prob(x, torch.zeros((), dtype=torch.float64)) / (2 * log(2))
    assert gap.std() < bits.std()
    assert abs(gap.mean().item()) < 3 * gap.std().item() / sqrt(len(gap)) + 1e-3
    x = mixture.sample(4000, generator=generator(3))
    coarse = GaussianMixture(mixture.means, mixture.stds, mixture.weights, schedule=Cosine(50))
    bound = variational_bound(coarse, x, noise=noise_of(2)).bits
    over = bound - bits_per_dimension(mixture.log_prob(x, torch.zeros((), dtype=torch.float64)), 2, WIDTH)
    assert over.mean() > 3 * over.std() / sqrt(len(over))


def test_a_sample_does_not_depend_on_its_batch(mixture):
    x, v = mixture.sample(6, generator=generator()), torch.randn(6, 2, generator=generator(), dtype=torch.float64)
    whole = flow_log_likelihood(mixture, x, noise=lambda _: v)
    parts = [flow_log_likelihood(mixture, x[i : i + 1], noise=lambda _, i=i: v[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)


def test_the_constant_of_eight_bit_data_comes_from_the_codec():
    """Uniform data have 8 bits: p = 1/2 on [-1 - 1/255, 1 + 1/255] is 256 levels of width 1/127.5 (trap 31)."""
    assert bin_width(Pixels()) == pytest.approx(1 / 127.5, rel=1e-6)
    density = torch.tensor([1 / (256 / 127.5)], dtype=torch.float64).log()
    assert bits_per_dimension(density, 1, bin_width(Pixels())).item() == pytest.approx(8, rel=1e-6)

    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    for codec in (Pixels(), Pixels(low=0.0, high=1.0), Pixels(low=-3.0, high=5.0)):
        width = codec.encode(levels).double().flatten().diff()
        assert width.tolist() == pytest.approx([bin_width(codec)] * 255, rel=1e-4)
    with pytest.raises(ValueError, match="Standardised does not keep 8-bit levels evenly spaced"):
        bin_width(Standardised((8, 8, 1), [0.5], [0.2]))


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_the_decoder_s_levels_are_the_codec_s(low, high):
    """The 256 probabilities add up to 1 whatever the range, and are those of [-1, 1] where the Gaussian is as wide in levels."""
    x = Pixels(low=low, high=high).encode(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)).double()
    scale = (high - low) / 2
    mean, log_std = torch.tensor(low + 1.3 * scale).double(), torch.tensor(0.05 * scale).double().log()
    p = discretised_log_likelihood(x, mean, log_std, low, high).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    usual = Pixels().encode(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)).double()
    assert p == pytest.approx(
        discretised_log_likelihood(usual, torch.tensor(0.3).double(), torch.tensor(0.05).double().log()).exp(), abs=1e-6
    )


def test_data_without_levels_have_a_density():
    """L_0 of data without a range is -log N, against torch's."""
    x, mean, log_var = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(x)
    assert torch.allclose(log_density(x, mean, log_var), expected, atol=1e-12)


def test_dequantisation_is_uniform_over_the_bin():
    x = dequantised(torch.zeros(20_000, dtype=torch.float64), 0.5, noise_of(0))
    assert x.min() >= -0.25 and x.max() < 0.25
    counts = torch.histc(x, 10, -0.25, 0.25)
    assert ((counts - 2000).abs() < 5 * sqrt(2000)).all()


def test_continuous_time_has_no_bound():
    with pytest.raises(ValueError, match="Flow has none; use metric=nll_ode"):
        variational_bound(GaussianMixture(torch.zeros(1, 2), torch.ones(1), schedule=Flow()), torch.zeros(1, 2))
