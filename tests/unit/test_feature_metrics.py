"""The metrics of features in one process: closed forms, few images, shared networks, errors, words."""

import sys
import types
from dataclasses import dataclass
from math import log

import numpy as np
import pytest
import torch
from composing import composed

from diffusion.conditions import Classes, Unconditional
from diffusion.metrics import (
    ClassAccuracy,
    DensityCoverage,
    DigitsClassifier,
    DINOv2,
    FrechetDistance,
    FrechetInfinity,
    Function,
    InceptionScore,
    KernelDistance,
    Memorization,
    Moments,
    Pixels,
    PrecisionRecall,
    SpatialFrechetDistance,
    TorchScript,
    density_coverage,
    frechet_distance,
    inception_scores,
    mmd2,
    precision_recall,
    standard_errors,
)
from diffusion.metrics.extractors.digits import digits
from diffusion.metrics.intervals import dealt
from diffusion.metrics.kernel import group_sums
from diffusion.support.build import build_stages
from diffusion.support.errors import UserError


@dataclass
class Images:
    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int = 10
    name: str = "digits"
    split: str = "train"
    sha256: str = "ab" * 32


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def real():
    inputs, labels = digits()
    return Images(((inputs + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()[:400], labels.numpy()[:400])


@pytest.fixture(scope="module")
def made(real):
    noise = torch.randint(0, 64, (150, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.from_numpy(real.images[:150]) // 2 + noise


SMALL = {
    FrechetDistance: {},
    FrechetInfinity: {"groups": 5},
    KernelDistance: {"subsets": 5, "subset_size": 50},
    InceptionScore: {"splits": 3},
    PrecisionRecall: {},
    DensityCoverage: {},
    ClassAccuracy: {},
    Memorization: {"pairs": 4},
}


def measure(metric, images, labels, sizes):
    metric.reset()
    for chunk, classes in zip(images.split(sizes), labels.split(sizes), strict=True):
        metric.update(chunk, classes)
    return metric.numbers()


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_chunks_do_not_matter_and_exactly_n_are_asked_for(kind, cache, real, made):
    metric = kind(DigitsClassifier(cache=cache), 150, cache, **{"groups": 5, **SMALL[kind]})
    metric.setup(real, "cpu", Classes(10))
    labels = torch.from_numpy(real.labels[:150])
    numbers = measure(metric, made, labels, 64)
    assert next(iter(numbers)) == metric.name and metric.name.endswith("-digits@150")
    assert all(np.isfinite(value) for value in numbers.values())
    assert any(key.endswith("/error") for key in numbers)
    for sizes in (7, [0, 149, 1]):
        assert measure(metric, made, labels, sizes) == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    without = kind(DigitsClassifier(cache=cache), 150, cache, **SMALL[kind])
    without.setup(real, "cpu", Classes(10))
    assert measure(without, made, labels, 50)[metric.name] == pytest.approx(numbers[metric.name], rel=1e-6)
    metric.update(made[:1], labels[:1])
    with pytest.raises(ValueError, match="150 images, and 151 were given"):
        metric.compute()
    assert {"metric", "n", "quantisation", "extractor", "reference", "statistics", "settings", "intervals"} == set(metric.passport())


def test_metrics_of_one_network_run_it_once(cache, real, made, monkeypatch):
    metrics = [kind(DigitsClassifier(cache=cache), 150, cache, **SMALL[kind]) for kind in SMALL]
    for metric in metrics:
        metric.setup(real, "cpu", Classes(10))
    assert len({id(metric.extractor) for metric in metrics}) == 1
    network, calls = metrics[0].extractor.network, []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    for chunk in made.split(50):
        for metric in metrics:
            metric.update(chunk.clone(), torch.zeros(len(chunk), dtype=torch.long))
    handle.remove()
    assert len(calls) == 3
    values = [next(iter(metric.numbers().values())) for metric in metrics]
    alone = FrechetDistance(DigitsClassifier(cache=cache), 150, cache)
    alone.setup(real, "cpu")
    alone.update(made)
    assert values[0] == pytest.approx(alone.compute().item(), rel=1e-6)


def gaussian_moments(mean, cov, n):
    """Exactly these moments, as if of n images."""
    moments = Moments(len(mean))
    moments.count.fill_(n)
    moments.mean, moments.scatter = mean.double(), cov.double() * (n - 1)
    return moments


def test_frechet_of_two_gaussians():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2 (Dowson & Landau)."""
    s = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 3.0, 0.5])
    m = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    a, b = (gaussian_moments(mean, torch.diag(std**2), 1000) for mean, std in zip(m, s, strict=True))
    assert frechet_distance(a, b) == pytest.approx(5 + 0.25 + 1, rel=1e-12)


def test_few_images_give_a_finite_number_and_a_warning(cache, real):
    metric = FrechetDistance(DigitsClassifier(cache=cache), 20, cache)
    metric.setup(real, "cpu")
    metric.update(torch.from_numpy(real.images[:20]))
    with pytest.warns(UserWarning, match="n = 20 images in d = 64 dimensions"):
        assert np.isfinite(metric.compute())
    with pytest.raises(ValueError, match="needs more than k=5 generated images"):
        DensityCoverage(DigitsClassifier(cache=cache), 5, cache)
    with pytest.raises(ValueError, match=r"subsets of 1000 images from 20 generated ones: say metric\.subset_size=20"):
        KernelDistance(DigitsClassifier(cache=cache), 20, cache)
    with pytest.raises(ValueError, match=r"metric\.groups=3 .* 2 to 2"):
        FrechetDistance(DigitsClassifier(cache=cache), 4, cache, groups=3)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    generator = torch.Generator().manual_seed(0)
    draws = [mmd2(*torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)) for _ in range(200)]
    null = torch.stack(draws)
    assert abs(null.mean()) < 4 * null.std() / 200**0.5
    # E k(x, y) for x, y ~ N(0, 1), N(m, 1) in d = 1 is E (x y + 1)^3 = 1 + 3 E x^2 y^2 = 1 + 3 (1 + m^2) and, between N(m, 1) and itself,
    # with u = x y: E u = m^2, E u^2 = (1 + m^2)^2, E u^3 = (m^3 + 3 m)^2
    m, (x, y) = 0.5, torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    within_x, between = 1 + 3, 1 + 3 * (1 + m**2)
    within_y = 1 + 3 * m**2 + 3 * (1 + m**2) ** 2 + (m**3 + 3 * m) ** 2
    assert mmd2(x, y + m).item() == pytest.approx(within_x + within_y - 2 * between, rel=0.1)


def test_inception_score_counts_classes():
    """Sure of one of ten classes in turn: ten. Unsure: one. Always the same: one."""
    sure = 1000 * torch.eye(10).repeat(3, 1)
    assert inception_scores(sure, 1).item() == pytest.approx(10)
    assert inception_scores(sure, 3).tolist() == pytest.approx([10] * 3)
    assert inception_scores(0 * sure, 1).item() == pytest.approx(1)
    assert inception_scores(sure[:1].repeat(30, 1), 1).item() == pytest.approx(1)


def test_neighbours_by_hand():
    """Real points 0, 1, 2, 10 on a line, k = 1: radii 1, 1, 1, 8. Made 0.5, 1.5, 5 with radii 1, 1, 3.5; 100 with 95."""
    real, made = (torch.tensor(points, dtype=torch.float64)[:, None] for points in ([0, 1, 2, 10], [0.5, 1.5, 5, 100]))
    assert precision_recall(made, real, k=1).tolist() == [0.75, 1.0]
    # made in balls: 0.5 in those of 0, 1; 1.5 in those of 1, 2; 5 in that of 10; 100 in none
    assert density_coverage(made, real, k=1).tolist() == [5 / 4, 1.0]
    assert density_coverage(made[3:], real, k=1).tolist() == [0, 0]


def test_the_same_distribution_has_density_one():
    a, b = torch.randn(2, 1500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    density, coverage = density_coverage(a, b, k=5).tolist()
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al., eq. 9, for many images


def distance_to_truth(parts):
    moments = Moments(4)
    for part in parts:
        moments.update(part)
    return torch.tensor([frechet_distance(gaussian_moments(torch.zeros(4), torch.eye(4), 10**6), moments)], dtype=torch.float64)


def test_the_standard_error_is_that_of_repeated_draws():
    """The jackknife of a distance, averaged over draws, against the deviation over draws with other seeds."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(400, 4, generator=generator, dtype=torch.float64) * 1.3 + 0.3 for _ in range(200)]
    repeated = torch.cat([distance_to_truth([rows]) for rows in draws]).std()
    stated = torch.cat([standard_errors(distance_to_truth, [rows[g::10] for g in range(10)]) for rows in draws[:40]])
    assert stated.square().mean().sqrt().item() == pytest.approx(repeated.item(), rel=0.25)


@pytest.mark.parametrize("n, classes, groups", [(1000, 10, 10), (1000, 1, 10), (33, 10, 10), (20, 5, 10), (97, 9, 10), (500, 1000, 7)])
def test_groups_share_out_every_class(n, classes, groups):
    """Sizes differ by one at most, in all and of each class; image i is of class i mod classes."""
    i = torch.arange(n)
    position = dealt(i, n, classes)
    assert torch.equal(position.sort().values, i)
    table = torch.zeros(groups, classes, dtype=torch.long).index_put_(
        (position % groups, i % classes), torch.ones(1).long(), accumulate=True
    )
    assert (table.amax(0) - table.amin(0)).max() <= 1 and table.sum(1).max() - table.sum(1).min() <= 1


def test_the_standard_error_of_conditional_images_is_that_of_repeated_draws(cache):
    """Ten classes far apart, the same number of images of each in every draw: what the classes differ in is no error of chance."""
    generator = np.random.default_rng(0)
    level = (np.arange(300) % 10 * 20)[:, None, None, None]
    draw = lambda: (level + generator.integers(0, 50, (300, 2, 2, 1))).astype(np.uint8)  # noqa: E731
    values, errors = [], []
    metric = FrechetDistance(Pixels(), 300, cache, groups=10)
    metric.setup(Images(np.concatenate([draw() // 2 for _ in range(10)]), sha256="ef" * 32), "cpu", Classes(10))
    for _ in range(60):
        metric.reset()
        metric.update(torch.from_numpy(draw()))
        values.append(metric.compute()[metric.name])
        errors.append(metric.compute()[f"{metric.name}/error"])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_the_error_of_the_kernel_distance_is_that_of_the_whole_mmd():
    """From the sums between groups, once, what the MMD without each group in turn gives."""
    x, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    parts = list(x.split([9, 11, 20, 20]))
    metric = KernelDistance(Pixels(), 60, "", groups=4, subset_size=10)
    metric.reference = y
    direct = standard_errors(lambda parts: mmd2(torch.cat(parts), y)[None], parts)
    assert standard_errors(metric.statistic, group_sums(parts, y)).item() == pytest.approx(direct.item(), rel=1e-9)


def test_the_extrapolation_takes_the_bias_of_n_away(cache):
    """Features are pixels; made and real are of one distribution, so that infinitely many images are at distance 0."""
    generator = np.random.default_rng(0)
    draw = lambda n: generator.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)  # noqa: E731
    real = Images(draw(60_000), sha256="cd" * 32)
    values, errors, plain = [], [], []
    for _ in range(24):
        made = torch.from_numpy(draw(400))
        infinity, finite = FrechetInfinity(Pixels(), 400, cache), FrechetDistance(Pixels(), 400, cache)
        for metric in (infinity, finite):
            metric.setup(real, "cpu")
            metric.update(made)
        numbers = infinity.numbers()
        values.append(numbers["fd-infinity-pixels@400"])
        errors.append(numbers["fd-infinity-pixels@400/error"])
        plain.append(finite.compute())
    spread = np.std(values, ddof=1)
    assert np.mean(plain) > 5 * abs(np.mean(values))
    assert abs(np.mean(values)) < 3 * spread / 24**0.5
    assert 0.7 < np.mean(errors) / spread < 1.4


def test_accuracy_of_real_digits_and_of_wrong_labels(cache, real):
    metric = ClassAccuracy(DigitsClassifier(cache=cache), 400, cache)
    metric.setup(real, "cpu", Classes(10))
    images, labels = torch.from_numpy(real.images), torch.from_numpy(real.labels)
    assert measure(metric, images, labels, 100)["accuracy-digits@400"] > 0.98
    assert measure(metric, images, (labels + 1) % 10, 100)["accuracy-digits@400"] < 0.02
    with pytest.raises(UserError, match="this model has none"):
        metric.update(images)
    for conditions, classes in ((Classes(7), 7), (Unconditional(), 0)):
        with pytest.raises(UserError, match=f"knows 10 classes and the model is asked for {classes}"):
            metric.setup(real, "cpu", conditions)


def test_pixels_of_another_shape_are_not_compared(cache, real):
    metric = Memorization(Pixels(cache=cache), 4, cache)
    metric.setup(real, "cpu")
    with pytest.raises(UserError, match=r"one shape: these are \[16, 16, 3\]"):
        metric.update(torch.zeros(4, 16, 16, 3, dtype=torch.uint8))


@pytest.mark.parametrize("extractor", [Pixels, DigitsClassifier])
def test_copies_are_found_and_shown(extractor, cache, real):
    """Three copies of training images among images of noise."""
    made = torch.randint(0, 256, (40, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    copied = [5, 77, 399]
    made[[3, 20, 31]] = torch.from_numpy(real.images[copied])
    metric = Memorization(extractor(cache=cache), 40, cache, pairs=3)
    metric.setup(real, "cpu")
    for chunk in made.split(16):
        metric.update(chunk)
    assert metric.numbers()[metric.name] == 3 / 40
    assert metric.numbers()[f"{metric.name}/distance"] > 0
    picture = metric.picture()
    upper, lower = picture[2:34], picture[36:68]
    assert torch.equal(upper, lower) and upper.float().std() > 0


def test_a_torchscript_file_and_a_function(tmp_path, real, made, cache, monkeypatch):
    class Sums(torch.nn.Module):
        def forward(self, x):
            return x.double().sum(3)

    torch.jit.script(Sums()).save(tmp_path / "sums.pt")
    (tmp_path / "my_rows.py").write_text("def rows(x):\n    return x.float().sum(3), x.float().mean((1, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    script, function = TorchScript(tmp_path / "sums.pt"), Function("my_rows:rows")
    expected = made.double().sum(2).repeat(1, 1, 3).permute(0, 2, 1).reshape(150, 24)
    for extractor in (script, function):
        metric = FrechetDistance(extractor, 150, cache)
        metric.setup(real, "cpu")
        metric.update(made)
        assert np.isfinite(metric.compute())
        torch.testing.assert_close(extractor(made).double().reshape(150, 3, 8)[:, 0], expected.reshape(150, 3, 8)[:, 0])
        assert metric.passport()["extractor"]["dim"] == 24
    assert (script.frechet, function.frechet) == ("fd-sums", "fd-rows")
    assert len({script.weights_hash, function.weights_hash}) == 2
    InceptionScore(function, 150, cache).setup(real, "cpu")
    with pytest.raises(UserError, match="gives features, not logits"):
        InceptionScore(script, 150, cache).setup(real, "cpu")
    with pytest.raises(UserError, match="gives features and logits, not spatial"):
        SpatialFrechetDistance(DigitsClassifier(cache=cache), 150, cache).setup(real, "cpu")
    for make, match in [
        (lambda: TorchScript(), "give its path by"),
        (lambda: TorchScript(tmp_path / "absent.pt"), "There is no file"),
        (lambda: TorchScript(tmp_path / "my_rows.py"), "is not a TorchScript file"),
        (lambda: Function("my_rows:absent"), "cannot be imported"),
        (lambda: Function(), "cannot be imported"),
        (lambda: Pixels(weights="x"), "reads no weights"),
    ]:
        with pytest.raises(UserError, match=match):
            make()


def test_dinov2_is_made_by_timm_and_fed_as_it_was_trained(tmp_path, monkeypatch):
    """timm stands in here: what it is asked for, and that a grey image reaches it as (x/255 - mean)/std at 224x224."""
    asked, seen = [], []

    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3)).repeat(1, 342)[:, :1024]

    def create_model(*args, **settings):
        asked.append((args, settings))
        return Network()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    (tmp_path / "weights.pth").write_bytes(b"")
    extractor = DINOv2(tmp_path / "weights.pth", tmp_path)
    assert asked[0][0] == ("vit_large_patch14_dinov2.lvd142m",)
    settings = {"pretrained": True, "num_classes": 0, "img_size": 224, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    assert asked[0][1] == settings
    features = extractor(torch.full((2, 32, 32, 1), 51, dtype=torch.uint8))
    assert features.shape == (2, 1024) and seen[0].shape == (2, 3, 224, 224)
    assert seen[0][0, :, 100, 100].tolist() == pytest.approx(
        [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225], rel=1e-5
    )
    with pytest.raises(UserError, match="There is no file"):
        DINOv2(tmp_path / "absent", tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"diffusion\[dinov2\]"):
        DINOv2(cache=tmp_path)


def test_words_compose_and_share_their_settings(tmp_path):
    words = ["fd", "kid", "inception_score", "precision_recall", "density_coverage", "fid_infinity", "accuracy", "memorization"]
    shared = ["metric.n=2000", "metric.extractor=DigitsClassifier", "metric.groups=5"]
    config = composed(f"metric=[{','.join(words)}]", *shared, f"paths.cache={tmp_path}")
    metrics = build_stages(config["metric"], "metric")
    assert [metric.name for metric in metrics.values()] == [
        "fd-digits@2k",
        "kd-digits@2k",
        "is-digits@2k",
        "precision-digits@2k",
        "density-digits@2k",
        "fd-infinity-digits@2k",
        "accuracy-digits@2k",
        "memorized-digits@2k",
    ]
    assert {metric.groups for metric in metrics.values()} == {5}
    bits = build_stages(composed("metric=[nll_vlb,nll_ode]")["metric"], "metric")
    assert [metric.n for metric in bits.values()] == [0, 0]


def test_logits_that_are_sure_of_nothing_do_not_divide_by_zero():
    assert inception_scores(torch.tensor([[0.0, -1e4], [-1e4, 0.0]]), 1).item() == pytest.approx(np.exp(log(2)))
