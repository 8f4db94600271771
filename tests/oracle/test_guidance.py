"""Guidance against the truth: a conditional Gaussian mixture, whose guided score is known in closed form."""

from itertools import pairwise

import pytest
import torch

from diffusion.codecs import Pixels
from diffusion.denoiser import Denoiser, Estimate
from diffusion.grids import Trailing
from diffusion.guidance import (
    Autoguidance,
    CFGPlusPlus,
    Classifier,
    ClassifierFree,
    Clip,
    DynamicThreshold,
    Interval,
    Rescale,
    Unconditional,
)
from diffusion.noise import SeededNoise
from diffusion.oracles import EmpiricalDistribution, GaussianMixture
from diffusion.parameterization import V
from diffusion.posterior import posterior
from diffusion.samplers import DDIM, last
from diffusion.schedules import Cosine, Flow, Linear

SCHEDULE = Cosine()
ORACLE = GaussianMixture(
    torch.tensor([[[[0.9, -0.4]]], [[[-0.7, 0.2]]], [[[0.1, 0.8]]]]),
    torch.tensor([0.3, 0.4, 0.25]),
    torch.tensor([0.5, 0.3, 0.2]),
    SCHEDULE,
    torch.tensor([0, 1, 0]),
)
COND = torch.tensor([0, 1, 1, 0])
TIMES = [torch.tensor(t, dtype=torch.float64) for t in (0.05, 0.4, 0.9)]


@pytest.fixture
def x():
    return torch.randn(4, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bayes(x_t, label):
    """The exact log p(c | x_t), up to a constant: an ideal noise-conditional classifier."""
    t = (label.double().round() + 1) / SCHEDULE.num_timesteps
    classes = torch.arange(2)[:, None].expand(-1, len(x_t))
    return torch.stack([ORACLE.log_prob(x_t, t, c) + ORACLE.log_class_weight(c) for c in classes], 1)


class Learned:
    """The oracle with a learned variance's fraction, which tells condition from null."""

    schedule, device = SCHEDULE, "cpu"

    def __call__(self, x_t, t, cond=None):
        x0, eps, _ = ORACLE(x_t, t, cond)
        return Estimate(x0, eps, (0.25 + cond.double()).reshape(-1, 1, 1, 1).expand_as(x_t))


def score(estimate, t):
    return -estimate.eps / SCHEDULE(t)[1]


def consistent(estimate, x_t, t):
    alpha, sigma = SCHEDULE(t)
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_is_the_guided_score(x, t, scale):
    """grad log [p(x) (p(x|c)/p(x))^s], every channel; 1 is the conditional model and 0 the unconditional."""
    guided = ClassifierFree(ORACLE, scale)(x, t, COND)
    marginal, conditional = ORACLE.score(x, t), ORACLE.score(x, t, COND)
    torch.testing.assert_close(score(guided, t), marginal + scale * (conditional - marginal), rtol=1e-9, atol=1e-9)
    consistent(guided, x, t)
    if scale in (0.0, 1.0):
        torch.testing.assert_close(guided.x0, ORACLE(x, t, COND if scale else None).x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_guidance_is_classifier_free_guidance(x, t, scale):
    """With the exact log p(c|x_t): on the unconditional model at w = s, on the conditional one at w = s - 1. Label -1 is not guided."""
    cond = torch.tensor([0, 1, -1, 0])
    want = ClassifierFree(ORACLE, scale)(x, t, cond)
    for got in (
        Classifier(Unconditional(ORACLE), bayes, scale)(x, t, cond),
        Classifier(ORACLE, bayes, scale - 1)(x, t, cond),
    ):
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-8, atol=1e-7)


def test_classifier_guidance_shifts_the_mean_as_algorithm_1(x):
    """ADM alg. 1's mean + scale Sigma grad, with Sigma = beta / sqrt(1 - beta)."""
    t, s, scale = torch.tensor(0.4).double(), torch.tensor(0.399).double(), 1.7
    guidance = Classifier(ORACLE, bayes, scale)
    mean, _, large = posterior(x, ORACLE(x, t, COND).x0, t, s, SCHEDULE)
    got, _, _ = posterior(x, guidance(x, t, COND).x0, t, s, SCHEDULE)
    shift = scale * large / (1 - large).sqrt() * guidance.gradient(x, t, COND)
    torch.testing.assert_close(got - mean, shift, rtol=1e-8, atol=1e-12)


def test_the_gradient_goes_through_the_classifier_alone(x):
    """A denoiser that nothing may be differentiated through serves; and it works where gradients are switched off, as in generation."""

    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("differentiated through the denoiser")

    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Net(torch.nn.Module):
        def forward(self, x, label, cond):
            return Wall.apply(weight * x)

    denoiser = Denoiser(Net(), SCHEDULE, V())
    x.requires_grad_()
    guided = Classifier(denoiser, bayes, 2.0)(x, TIMES[1], COND)
    with torch.no_grad():
        assert torch.equal(Classifier(denoiser, bayes, 2.0)(x, TIMES[1], COND).x0, guided.x0)


def test_classifier_guidance_is_finite_without_signal(x):
    flow = GaussianMixture(ORACLE.means, ORACLE.stds, schedule=Flow(), classes=ORACLE.classes)
    one = torch.ones((), dtype=torch.float64)
    slope = lambda x_t, label: torch.stack([x_t.flatten(1).sum(1), x_t.flatten(1)[:, 0]], 1)  # noqa: E731
    guided, plain = Classifier(flow, slope, 3.0)(x, one, COND), flow(x, one, COND)
    assert torch.equal(guided.x0, plain.x0)
    assert torch.equal(guided.eps, plain.eps)


def test_a_negative_condition_takes_the_null_ones_place(x):
    t = TIMES[1]
    want = ORACLE(x, t, 1 - COND).eps
    got = ClassifierFree(ORACLE, 3.0, negative=1 - COND)(x, t, COND).eps
    torch.testing.assert_close(got, want + 3 * (ORACLE(x, t, COND).eps - want), rtol=1e-10, atol=1e-10)
    same = ClassifierFree(ORACLE, 3.0, negative=1)(x, t, torch.ones_like(COND))
    torch.testing.assert_close(same.x0, ORACLE(x, t, torch.ones_like(COND)).x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: ClassifierFree(d, 3.0),
        lambda d: Classifier(d, bayes, 3.0),
        lambda d: Autoguidance(d, ORACLE, 2.0),
        lambda d: CFGPlusPlus(d, 0.5, grid=Trailing(10)),
        lambda d: Clip(ClassifierFree(d, 3.0)),
        lambda d: DynamicThreshold(ClassifierFree(d, 3.0)),
        lambda d: Rescale(ClassifierFree(d, 3.0)),
        lambda d: Interval(ClassifierFree(d, 3.0), 0.1, 1.0),
        lambda d: Clip(Interval(Rescale(Clip(ClassifierFree(d, 3.0))), 0.1, 9.0)),
    ],
)
@pytest.mark.parametrize("t", TIMES)
def test_the_variance_is_never_guided(x, t, wrap):
    """frac is the conditional model's; x_t = alpha x_0 + sigma eps holds; one time for all is the same as a time for each."""
    guided = wrap(Learned())(x, t, COND)
    assert torch.equal(guided.frac, Learned()(x, t, COND).frac)
    consistent(guided, x, t)
    each = wrap(Learned())(x, t.expand(4), COND)
    torch.testing.assert_close(each.x0, guided.x0, rtol=1e-9, atol=1e-9)


def test_autoguidance_is_extrapolation(x):
    bad = GaussianMixture(ORACLE.means, ORACLE.stds * 1.5, schedule=SCHEDULE, classes=ORACLE.classes)
    t = TIMES[1]
    want = bad(x, t, COND).x0 + 2.5 * (ORACLE(x, t, COND).x0 - bad(x, t, COND).x0)
    torch.testing.assert_close(Autoguidance(ORACLE, bad, 2.5)(x, t, COND).x0, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "scale"), [(3, 0.7), (10, 0.7), (10, 1.0), (10, 0.0)])
def test_cfg_plus_plus_is_its_algorithm_2(x, steps, scale):
    """DDIM whose noise is the unconditional model's, written out."""
    grid = Trailing(steps)
    times, y = grid(SCHEDULE), x.clone()
    for t, s in pairwise(times):
        null, positive = ORACLE(y, t), ORACLE(y, t, COND)
        alpha, sigma = SCHEDULE(s)
        y = alpha * (null.x0 + scale * (positive.x0 - null.x0)) + sigma * null.eps
    guided = CFGPlusPlus(ORACLE, scale, grid=grid)

    class Filled:
        schedule = SCHEDULE

        def __call__(self, x, t):
            return guided(x, t, COND)

    got = last(DDIM()(Filled(), x, times, SeededNoise([0] * 4, "cpu"))).x
    torch.testing.assert_close(got, y, rtol=1e-8, atol=1e-8)


def test_clip_derives_eps_again(x):
    t, (alpha, sigma) = TIMES[2], SCHEDULE(TIMES[2])
    inner = ClassifierFree(ORACLE, 6.0)
    clipped, plain = Clip(inner, -0.5, 0.5)(x, t, COND), inner(x, t, COND)
    assert plain.x0.abs().max() > 0.5
    assert torch.equal(clipped.x0, plain.x0.clamp(-0.5, 0.5))
    torch.testing.assert_close(clipped.eps, (x - alpha * clipped.x0) / sigma, rtol=1e-12, atol=1e-12)
    assert (clipped.eps - plain.eps).abs().max() > 1e-3


class Wide:
    """A denoiser with large images, for what is measured over pixels."""

    schedule, device = SCHEDULE, "cpu"

    def __call__(self, x_t, t, cond=None):
        lift = torch.where(cond < 0, 0.0, 1.0 + cond).reshape(-1, 1, 1, 1)
        alpha, sigma = (v.reshape(-1, 1, 1, 1) if v.ndim else v for v in self.schedule(t))
        x0 = torch.tanh(x_t) * (0.5 + lift) + 0.2 * lift
        return Estimate(x0, (x_t - alpha * x0) / sigma)


@pytest.fixture
def image():
    return 2 * torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_is_its_formula_for_each_sample(image, phi):
    t, inner = TIMES[1], ClassifierFree(Wide(), 4.0)
    guided, positive = inner(image, t, COND).x0, Wide()(image, t, COND).x0
    got = Rescale(inner, phi)(image, t, COND).x0
    for i in range(4):
        want = phi * guided[i] * positive[i].std() / guided[i].std() + (1 - phi) * guided[i]
        torch.testing.assert_close(got[i], want, rtol=1e-12, atol=1e-12)
    without = Rescale(ClassifierFree(Wide(), 1.0), phi)(image, t, COND).x0
    torch.testing.assert_close(without, positive, rtol=1e-12, atol=1e-12)
    through = Rescale(Interval(inner), phi)(image, t, COND).x0  # a guidance that does not hand out its conditional half
    torch.testing.assert_close(through, got, rtol=1e-12, atol=1e-12)


def test_dynamic_threshold_is_its_formula(image):
    t, inner = TIMES[1], ClassifierFree(Wide(), 4.0)
    guided = inner(image, t, COND).x0
    got = DynamicThreshold(inner, percentile=0.9)(image, t, COND)
    for i in range(4):
        q = max(1.0, torch.quantile(guided[i].abs().flatten(), 0.9).item())
        torch.testing.assert_close(got.x0[i], guided[i].clamp(-q, q) / q, rtol=1e-12, atol=1e-12)
    consistent(got, image, t)
    calm = DynamicThreshold(Wide())(image / 100, t, torch.full((4,), -1))  # within the range already
    torch.testing.assert_close(calm.x0, Wide()(image / 100, t, torch.full((4,), -1)).x0, rtol=1e-12, atol=1e-12)


def test_interval_guides_inside_and_costs_one_call_outside(image):
    calls = []

    class Counting(Wide):
        def __call__(self, x_t, t, cond=None):
            calls.append(len(x_t))
            return super().__call__(x_t, t, cond)

    levels = [(SCHEDULE(t)[1] / SCHEDULE(t)[0]).item() for t in TIMES]
    inner = ClassifierFree(Counting(), 4.0)
    limited = Interval(inner, levels[0], levels[1])  # open below, closed above
    for t, guided in zip(TIMES, (False, True, False), strict=True):
        calls.clear()
        got = limited(image, t, COND).x0
        assert calls == [8 if guided else 4]
        torch.testing.assert_close(got, (inner if guided else Wide())(image, t, COND).x0, rtol=1e-12, atol=1e-12)
    mixed = limited(image, torch.stack([*TIMES, TIMES[1]]), COND).x0
    for i, t in enumerate([*TIMES, TIMES[1]]):
        torch.testing.assert_close(mixed[i], limited(image, t, COND).x0[i], rtol=1e-10, atol=1e-10)


def test_what_remains_outside_an_interval_is_still_clipped(image):
    limited = Interval(Clip(ClassifierFree(Wide(), 4.0), -0.3, 0.3), 0.0, 1e-9)
    assert limited(image, TIMES[1], COND).x0.abs().max() <= 0.3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClassifierFree(ORACLE, 2.0)(torch.zeros(1, 1, 1, 2), TIMES[0]), "needs a conditional model"),
        (lambda: Classifier(ORACLE, bayes)(torch.zeros(1, 1, 1, 2), TIMES[0]), "none was given"),
        (lambda: Classifier(ORACLE, Denoiser(torch.nn.Identity(), SCHEDULE, V())), "task=classifier"),
        (lambda: Autoguidance(ORACLE, GaussianMixture(ORACLE.means, ORACLE.stds, schedule=Linear())), "share a noise schedule"),
        (lambda: Rescale(ORACLE), r"guidance=\[cfg,rescale\]"),
        (lambda: CFGPlusPlus(ORACLE, 0.5), "grid"),
        (lambda: CFGPlusPlus(ORACLE, 2.0, grid=Trailing(5)), "between 0 and 1"),
        (lambda: DynamicThreshold(ORACLE, percentile=99.5), "percentile"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("exact", [GaussianMixture(torch.zeros(2, 1), torch.ones(2)), EmpiricalDistribution(torch.zeros(2, 1))])
def test_an_exact_denoiser_without_classes_refuses_a_condition(exact):
    x = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="no classes: give it their classes, or no condition"):
        exact(x, TIMES[1], torch.tensor([0]))
    assert exact(x, TIMES[1]).x0.shape == x.shape


def test_unconditional_stays_so_outside_an_interval():
    """[unconditional, classifier, interval]: outside the interval it is the model without its condition, not the conditional one."""
    model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2,), 0.1), classes=torch.tensor([0, 1]))
    x, t, cond = torch.zeros(2, 1, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64), torch.tensor([0, 1])
    guided = Interval(Classifier(Unconditional(model), lambda x, label: torch.cat([x, -x], 1), 3.0), 0.0, 1e-6)
    assert torch.equal(guided(x, t, cond).x0, model(x, t).x0)


def test_a_second_model_shares_the_space():
    """One that was trained on pixels in another range is refused; another size of image is not another space."""
    model = GaussianMixture(torch.zeros(1, 1, 8, 8), torch.ones(1))
    second = GaussianMixture(torch.zeros(1, 1, 8, 8), torch.ones(1))
    for codec in (Pixels((8, 8, 1)), Pixels((16, 8, 1))):
        second.codec = codec
        assert Autoguidance(model, second, 2.0, Pixels((8, 8, 1))).bad is second
    second.codec = Pixels((8, 8, 1), 0.0, 1.0)
    with pytest.raises(ValueError, match="second model was trained in another space"):
        Autoguidance(model, second, 2.0, Pixels((8, 8, 1)))
    second.schedule = model.schedule
    with pytest.raises(ValueError, match="The classifier was trained in another space"):
        Classifier(model, second, 2.0, Pixels((8, 8, 1)))
