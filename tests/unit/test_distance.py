"""FrechetDistance and the reference statistics in one process."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from diffusion.metrics import DigitsClassifier, FrechetDistance, Moments, frechet_distance, reference_moments
from diffusion.metrics.extractors.digits import digits
from diffusion.metrics.reference import reference_path
from diffusion.support.errors import UserError


@dataclass
class Images:
    images: np.ndarray
    name: str = "digits"
    split: str = "train"
    sha256: str = "ab" * 32


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def real():
    return Images(((digits()[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()[:400])


@pytest.fixture(scope="module")
def made(real):
    """150 images that are no digits."""
    noise = torch.randint(0, 64, (150, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.from_numpy(real.images[:150]) // 2 + noise


@pytest.fixture
def metric(cache, real):
    metric = FrechetDistance(DigitsClassifier(cache=cache), n=150, cache=cache)
    metric.setup(real, "cpu")
    return metric


def measure(metric, images, sizes):
    metric.reset()
    for chunk in images.split(sizes):
        metric.update(chunk)
    return metric.compute().item()


def test_the_number_is_the_distance_of_the_features(metric, real, made):
    pair = []
    for images in (made, torch.from_numpy(real.images)):
        pair.append(Moments(64))
        pair[-1].update(metric.extractor(images))
    assert measure(metric, made, 64) == pytest.approx(frechet_distance(*pair), rel=1e-6)
    assert metric.compute() == metric.compute()
    assert metric.name == "fd-digits@150"


@pytest.mark.parametrize("sizes", [7, 64, [0, 149, 1]])
def test_chunks_do_not_matter(metric, made, sizes):
    assert measure(metric, made, sizes) == pytest.approx(measure(metric, made, 150), rel=1e-6)


def test_real_images_are_nearer_than_altered_ones(metric, real, made):
    assert measure(metric, torch.from_numpy(real.images[150:300]), 50) < 0.2 * measure(metric, made, 50)


def test_exactly_n_images_are_asked_for(metric, made, cache):
    metric.update(made[:149])
    with pytest.raises(ValueError, match="150 images, and 149 were given"):
        metric.compute()
    with pytest.raises(ValueError, match=r"metric\.n=1 is too few"):
        FrechetDistance(DigitsClassifier(cache=cache), n=1, cache=cache)


def test_thousands_are_abbreviated(cache):
    names = [FrechetDistance(DigitsClassifier(cache=cache), n, cache).name for n in (1000, 50_000, 1797)]
    assert names == ["fd-digits@1k", "fd-digits@50k", "fd-digits@1797"]


def test_images_that_do_not_fit_are_refused_at_setup(cache):
    metric = FrechetDistance(DigitsClassifier(cache=cache), n=10, cache=cache)
    with pytest.raises(UserError, match="choose another metric"):
        metric.setup(Images(np.zeros((4, 32, 32, 3), np.uint8)), "cpu")
    with pytest.raises(ValueError, match=r"digits \(train\) has no images"):
        metric.setup(Images(np.zeros((0, 8, 8, 1), np.uint8)), "cpu")


def test_the_reference_is_computed_once(metric, cache, real, monkeypatch):
    path = reference_path(real, metric.extractor, cache)
    assert path.exists()
    for part in ("digits-train", real.sha256[:16], metric.extractor.weights_hash):
        assert part in path.name
    monkeypatch.setattr(DigitsClassifier, "__call__", lambda *_: pytest.fail("computed although it was cached"))
    again = reference_moments(real, metric.extractor, cache)
    assert torch.equal(again.scatter, metric.reference.scatter)


def test_another_split_content_or_network_is_another_file(metric, cache, real):
    class Other(DigitsClassifier):
        name = "other"

    paths = {
        reference_path(real, metric.extractor, cache),
        reference_path(Images(real.images, split="test"), metric.extractor, cache),
        reference_path(Images(real.images, sha256="cd" * 32), metric.extractor, cache),
        reference_path(real, Other(cache=cache), cache),
    }
    assert len(paths) == 4


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b[:3000] + b"\xff" * 64 + b[3064:]])
def test_a_damaged_reference_is_computed_again(metric, real, cache, tmp_path, damage):
    source = reference_path(real, metric.extractor, cache)
    target = reference_path(real, metric.extractor, tmp_path)
    target.parent.mkdir()
    target.write_bytes(damage(source.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        again = reference_moments(real, metric.extractor, tmp_path)
    assert torch.equal(again.scatter, metric.reference.scatter)
    assert target.read_bytes() == source.read_bytes()


def test_features_of_the_last_batch_are_not_lost(metric, real, tmp_path, monkeypatch):
    monkeypatch.setattr(DigitsClassifier, "batch", 37)
    again = reference_moments(real, metric.extractor, tmp_path)
    assert again.n == 400
    torch.testing.assert_close(again.cov, metric.reference.cov, rtol=1e-5, atol=1e-6)
