"""The losses of a diagnosis against closed forms and quadrature, and its findings on models that are known to be at fault."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion.denoiser import Estimate
from diffusion.evaluation import findings as asked
from diffusion.evaluation.findings import Evidence, findings
from diffusion.evaluation.losses import Items, band_times, eps_errors, gaussian_error, measured_bands, spectrum, target_share
from diffusion.evaluation.noise_scale import NoiseScale, noise_scale
from diffusion.oracles import EmpiricalDistribution, GaussianMixture
from diffusion.parameterization import X0, Epsilon, V
from diffusion.schedules import EDM, Cosine, Flow, Linear

SCHEDULE = Cosine()
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.0]])
MIXTURE = GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.2]), schedule=SCHEDULE)


def drawn(n: int, seed: int, of: GaussianMixture = MIXTURE) -> Items:
    """n items of a mixture, each with the noise of its own seed."""
    return Items(of.sample(n, generator=torch.Generator().manual_seed(seed)), None, list(range(seed * 10_000, seed * 10_000 + n)))


class Wiener:
    """The linear filter: E[x_0 | x_t] for data N(m, S), whatever the data are."""

    def __init__(self, x0: torch.Tensor, schedule=SCHEDULE, damage=lambda log_snr: 0.0) -> None:
        self.mean, self.schedule, self.damage = x0.mean(0), schedule, damage
        self.covariance = (x0 - self.mean).T @ (x0 - self.mean) / len(x0)

    def __call__(self, x, t, cond=None):
        alpha, sigma = (v[0].item() for v in self.schedule(t))
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=torch.float64)
        gap = x.double() - alpha * self.mean
        eps = sigma * gap @ torch.linalg.inv(noisy).T
        eps = eps + self.damage(2 * math.log(alpha / sigma))
        return Estimate((x.double() - sigma * eps) / alpha, eps)


def bands_of(model, train: Items, heldout: Items | None = None, last=None):
    return measured_bands(model, last, train, heldout, train, 128)


# ---- the least errors -------------------------------------------------------------------------------------------------------------


def test_the_gaussian_s_error_is_that_of_the_linear_filter():
    """In closed form and by simulation, of data that are no Gaussian: only their covariance counts."""
    train = drawn(4000, 1)
    bands = bands_of(Wiener(train.x0), train)
    apart = (bands.mean("model/train") - bands.gaussian).abs()
    assert (apart < 4 * bands.error("model/train")).all()
    assert (4 * bands.error("model/train") < 0.2 * bands.gaussian).all()  # so that it could fail


def test_the_gaussian_s_error_of_eps_and_of_x0():
    """MATHS: of x_0 mean_i l sigma^2/(alpha^2 l + sigma^2), of eps alpha^2/sigma^2 times it; of one dimension known by hand."""
    eigenvalues, log_snr = torch.tensor([4.0, 1.0], dtype=torch.float64), torch.tensor([math.log(3.0)], dtype=torch.float64)
    assert gaussian_error(eigenvalues, log_snr).item() == pytest.approx((12 / 13 + 3 / 4) / 2, rel=1e-12)
    alpha, sigma = SCHEDULE.native(log_snr)
    of_x0 = (eigenvalues * sigma**2 / (alpha**2 * eigenvalues + sigma**2)).mean()
    assert (alpha**2 / sigma**2 * of_x0).item() == pytest.approx(gaussian_error(eigenvalues, log_snr).item(), rel=1e-12)


@pytest.mark.parametrize("n, d", [(40, 7), (7, 40)])
def test_the_spectrum_of_few_and_of_many_rows(n, d):
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    assert torch.allclose(spectrum(x.reshape(n, d, 1, 1)).sort().values, expected, atol=1e-10)


def test_a_mixture_s_own_error_is_that_of_quadrature():
    """In one dimension: eps's least error is alpha^2/sigma^2 (E x_0^2 - E E[x_0|x_t]^2), the latter an integral over x_t."""
    mixture = GaussianMixture(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.6]), torch.tensor([1.0, 2.0]), SCHEDULE)
    items = drawn(6000, 2, mixture)
    bands = bands_of(mixture, items)
    second = (mixture.weights * (mixture.stds**2 + mixture.means[:, 0] ** 2)).sum()
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    for k, t in enumerate(bands.t):
        alpha, sigma = SCHEDULE(t)
        times = t.expand(len(grid))
        density = mixture.log_prob(grid, times).exp()
        left = second - torch.trapezoid(density * mixture(grid, times).x0[:, 0] ** 2, grid[:, 0])
        assert (bands.mean("model/train")[k] - alpha**2 / sigma**2 * left).abs() < 4 * bands.error("model/train")[k]
    assert (bands.error("model/train") < 0.05 * bands.mean("model/train")).all()


def test_the_order_of_the_errors():
    """On its own data the exact denoiser is below all, then the mixture's own, then the Gaussian's; on others it bounds nothing."""
    train, heldout = drawn(300, 3), drawn(300, 4)
    bands = bands_of(MIXTURE, train, heldout)
    exact, own, other = (bands.mean(name) for name in ("exact/train", "model/train", "exact/heldout"))
    paired = bands.errors["model/train"] - bands.errors["exact/train"]
    assert (paired.mean(1) > -2 * paired.std(1) / 300**0.5).all()  # the bound is of an expectation over noise
    assert (exact < own).all() and (exact < 0.8 * own).any() and (own < 0.8 * bands.gaussian).sum() >= 2
    assert (other > 2 * bands.mean("model/heldout")).any()


def test_the_exact_denoiser_knows_conditions_and_mirror_images():
    """Asked for an item's own label it is nearer; told of mirror images it is farther, since there is more to take it for."""
    train = drawn(60, 5)
    labels, times = torch.arange(60) % 2, band_times(SCHEDULE)
    plain, told = EmpiricalDistribution(train.x0, SCHEDULE), EmpiricalDistribution(train.x0, SCHEDULE, labels)
    more = EmpiricalDistribution(torch.cat([train.x0, -train.x0]), SCHEDULE)
    error = {}
    for name, denoise, cond in (("plain", plain, None), ("told", told, labels), ("more", more, None)):
        error[name] = eps_errors(denoise, train._replace(cond=cond), times, 16, torch.float64).eps.mean()
    assert error["told"] < 0.98 * error["plain"] and error["plain"] < 0.98 * error["more"]


# ---- how they are measured --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Linear(zero_terminal_snr=True), Flow(), EDM(), Cosine(num_timesteps=5)], ids=repr)
def test_the_bands_lie_between_the_ends(schedule):
    """Ascending, finite, at steps of the schedule, one in each band."""
    t = band_times(schedule)
    steps = schedule.num_timesteps or 1000
    log_snr = schedule.log_snr(t)
    assert 2 <= len(t) <= 10 and (t.diff() > 0).all() and log_snr.isfinite().all()
    assert torch.equal((t * steps).round() / steps, t)
    every = schedule.log_snr(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    every = every[every.isfinite()]
    width = (every[0] - every[-1]) / 10
    band = ((every[0] - log_snr) / width).floor().clamp(max=9)
    assert len(band.unique()) == len(t)


def test_the_errors_do_not_depend_on_the_batch():
    train = drawn(50, 6)
    times = band_times(SCHEDULE)
    few, many = (eps_errors(MIXTURE, train, times, size, torch.float64).eps for size in (7, 50))
    assert torch.allclose(few, many, rtol=1e-10)
    assert not torch.allclose(few[0], few[1])


@pytest.mark.parametrize(
    "read, factor", [(Epsilon(), lambda a, s: 1 + 0 * a), (X0(), lambda a, s: s**2 / a**2 / 3), (V(), lambda a, s: 0 * a)]
)
def test_the_error_of_the_target(read, factor):
    """Of eps its own; of x_0 sigma^2/alpha^2 times it, over the data's variance; of v 1 + sigma^2/alpha^2 times it."""
    times = band_times(SCHEDULE)
    alpha, sigma = SCHEDULE(times)
    expected = (1 + sigma**2 / alpha**2) / (alpha**2 + 3 * sigma**2) if isinstance(read, V) else factor(alpha, sigma)
    assert torch.allclose(target_share(read, SCHEDULE, times, 3.0), expected, rtol=1e-9)


class Linearly(nn.Module):
    """Half the squared distance of a weight from items, whose gradient by it is the weight less the item."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64))


def test_the_noise_scale_of_a_linear_model():
    """|G|^2 = 0.25 and tr(Sigma) = 3 * 4, so that B_simple = 48."""
    model, generator = Linearly(), torch.Generator().manual_seed(0)
    batches = 2 * torch.randn(2000, 8, 3, dtype=torch.float64, generator=generator)
    found = noise_scale(model, lambda i: 0.5 * (model.weight - batches[i]).square().sum(1).mean(), 2000, 8)
    assert found.square == pytest.approx(0.25, rel=0.1) and found.trace == pytest.approx(12, rel=0.05)
    assert found.value == pytest.approx(48, rel=0.12) and found.images == 16_000


def test_a_gradient_that_is_all_noise_has_no_scale():
    assert NoiseScale(-0.1, 3.0, 512).value == math.inf
    with pytest.raises(ValueError, match="two batches"):
        noise_scale(Linearly(), lambda i: torch.zeros(()), 1, 8)


# ---- what they say ----------------------------------------------------------------------------------------------------------------

TRAIN, HELDOUT = drawn(300, 7), drawn(300, 8)


def test_a_good_model_is_normal():
    """The truth itself: below the Gaussian, nothing memorised, no end starved."""
    found = findings(Evidence(bands_of(MIXTURE, TRAIN, HELDOUT), 128))
    assert [one.answer for one in found] == ["yes", "no", "no"] and all(one.normal for one in found)


def test_a_linear_filter_is_not_below_the_gaussian():
    finding = asked.below_the_gaussian(Evidence(bands_of(Wiener(TRAIN.x0), TRAIN), 128))
    assert finding.answer == "not told apart" and finding.numbers["ratio"] == pytest.approx(1, abs=0.1) and not finding.normal
    true = GaussianMixture(torch.zeros(1, 64), torch.ones(1), schedule=SCHEDULE)  # of data that are a Gaussian's: nothing is better
    few = asked.below_the_gaussian(Evidence(bands_of(true, drawn(300, 9, true)), 128))
    assert few.answer == "not told apart" and few.numbers["ratio"] - 2 * few.numbers["error"] > 1  # though the filter has seen them
    worse = asked.below_the_gaussian(Evidence(bands_of(Wiener(TRAIN.x0, damage=lambda log_snr: 0.5), TRAIN), 128))
    assert worse.answer == "no" and "what to do" in str(worse)


def errors_with_a_gap(share):
    """Errors of very many images, of which those of training are lower by this share."""
    bands = bands_of(MIXTURE, TRAIN, HELDOUT)
    heldout = bands.mean("model/heldout")[:, None].expand(-1, 1000)
    return {**bands.errors, "model/heldout": heldout, "model/train": (1 - share) * heldout}


def test_what_knows_its_images_is_memorising():
    """The exact denoiser itself has gone all the way; a part of it beside the truth, some of it."""
    exact = EmpiricalDistribution(TRAIN.x0, SCHEDULE)
    finding = asked.memorising(Evidence(bands_of(exact, TRAIN, HELDOUT), 128))
    assert finding.answer == "yes" and finding.numbers["share"] == pytest.approx(1, abs=0.01)

    class Mixed:
        schedule = SCHEDULE

        def __call__(self, x, t, cond=None):
            known, true = exact(x.double(), t), MIXTURE(x.double(), t)
            return Estimate(0.08 * known.x0 + 0.92 * true.x0, 0.08 * known.eps + 0.92 * true.eps)

    slight = asked.memorising(Evidence(replace(bands_of(MIXTURE, TRAIN, HELDOUT), errors=errors_with_a_gap(0.03)), 128))
    assert slight.answer == "no" and slight.normal and 0 < slight.numbers["share"] < 0.1  # of very many images
    some = asked.memorising(Evidence(bands_of(Mixed(), TRAIN, HELDOUT), 128))
    assert some.answer.startswith("no, but") and 0.1 < some.numbers["share"] < 0.5 and not some.normal
    assert asked.memorising(Evidence(bands_of(exact, TRAIN), 128)) is None


@pytest.mark.parametrize(
    "end, damage",
    [("clean", lambda snr: 0.4 * (snr > 8)), ("noisy", lambda snr: 0.4 * (snr < -16)), (None, lambda snr: 0.4 * (abs(snr) < 2))],
)
def test_an_end_is_starved(end, damage):
    """Where the error is 0.4 in that end alone; in the middle it is another fault."""
    finding = asked.starved(Evidence(bands_of(Wiener(TRAIN.x0, damage=damage), TRAIN), 128))
    assert finding.answer == (f"yes, the {end} one" if end else "no")
    assert finding.numbers["excess"] == pytest.approx(0.16, abs=0.08)


@pytest.mark.parametrize("frac, answer", [(0.5, "yes"), (1.2, "no"), (-0.01, "no")])
def test_a_variance_outside_of_its_ends(frac, answer):
    class Learned(Wiener):
        def __call__(self, x, t, cond=None):
            return super().__call__(x, t)._replace(frac=torch.full_like(x, frac))

    assert asked.variance_between_its_ends(Evidence(bands_of(Learned(TRAIN.x0), TRAIN), 128)).answer == answer
    assert asked.variance_between_its_ends(Evidence(bands_of(Wiener(TRAIN.x0), TRAIN), 128)) is None


def test_an_average_that_is_too_old():
    """The damaged weights are the averaged ones, or the last ones."""
    good, bad = Wiener(TRAIN.x0), Wiener(TRAIN.x0, damage=lambda log_snr: 0.1)
    old = asked.average_too_long(Evidence(bands_of(bad, TRAIN, last=good), 128, old=0.7))
    young = asked.average_too_long(Evidence(bands_of(good, TRAIN, last=bad), 128, old=0.01))
    assert old.answer == "yes" and "70 %" in old.seen and young.answer == "no"
    assert asked.average_too_long(Evidence(bands_of(good, TRAIN), 128)) is None


@pytest.mark.parametrize("scale, answer", [(128, "yes"), (5000, "no, it is smaller"), (3, "no, it is larger")])
def test_the_batch_beside_the_noise(scale, answer):
    evidence = Evidence(bands_of(MIXTURE, TRAIN), 128)
    assert asked.batch_and_noise(replace(evidence, noise=NoiseScale(1.0, float(scale), 512))).answer == answer
    assert asked.batch_and_noise(evidence) is None


def test_a_gradient_that_is_all_noise():
    """However many items there were: a sign tells nothing of a batch."""
    finding = asked.batch_and_noise(Evidence(bands_of(MIXTURE, TRAIN), 128, noise=NoiseScale(-0.1, 3.0, 2048)))
    assert finding.answer == "not told" and finding.normal and "not told from infinity by 2,048 of them" in finding.seen


def test_each_finding_has_a_rule_a_number_and_a_reference():
    class Learned(Wiener):
        def __call__(self, x, t, cond=None):
            return super().__call__(x, t)._replace(frac=torch.full_like(x, 0.5))

    evidence = Evidence(bands_of(Learned(TRAIN.x0), TRAIN, HELDOUT, MIXTURE), 128, 0.1, NoiseScale(1.0, 100.0, 512))
    found = findings(evidence)
    assert len(found) == len(asked.QUESTIONS) == 6
    assert all(one.rule and one.reference and one.remedy and one.numbers and one.seen for one in found)
