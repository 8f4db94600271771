"""The same features through torch-fidelity's and torchmetrics' metrics."""

from functools import partial

import pytest
import torch

from diffusion.metrics import inception_scores, mmd2, precision_recall
from diffusion.metrics.kernel import subset_distances

N, D = 300, 24


@pytest.fixture(scope="module")
def features():
    """(made, real): overlapping clouds of points."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return 0.8 * torch.randn(N - 20, D, generator=generator, dtype=torch.float64) + 0.1, real


@pytest.fixture(scope="module")
def logits():
    return 3 * torch.randn(N, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_kid_of_torch_fidelity(features):
    """A subset of the whole needs no draw; the draws of subsets are then ours, checked against mmd2 below."""
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    made, real = features[0], features[1][: N - 20]
    theirs = kid.kid_features_to_metric(made, real, kid_subsets=1, kid_subset_size=N - 20, verbose=False)
    assert mmd2(made, real).item() == pytest.approx(theirs[kid.KEY_METRIC_KID_MEAN], rel=1e-9)


def test_kid_of_torchmetrics_over_subsets(features, monkeypatch):
    kid = pytest.importorskip("torchmetrics.image.kid")
    drawn = []
    draw = partial(torch.randperm, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randperm", lambda n, **_: drawn.append(draw(n)) or drawn[-1])
    metric = kid.KernelInceptionDistance(feature=torch.nn.Flatten(), subsets=8, subset_size=50).set_dtype(torch.float64)
    metric.fake_features, metric.real_features = [features[1]], [features[0]]  # it draws of the real ones first, we of the made ones
    mean, std = metric.compute()
    monkeypatch.undo()
    ours = subset_distances(*features, subsets=8, size=50, seed=0)
    assert ours.mean().item() == pytest.approx(mean.item(), rel=1e-9)
    assert ours.std(unbiased=False).item() == pytest.approx(std.item(), rel=1e-9)


def test_inception_score_of_torch_fidelity(logits):
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    theirs = isc.isc_features_to_metric(logits, splits=7, shuffle=False)
    ours = inception_scores(logits, 7)
    assert ours.mean().item() == pytest.approx(theirs[isc.KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert ours.std(unbiased=False).item() == pytest.approx(theirs[isc.KEY_METRIC_ISC_STD], rel=1e-9)


def test_inception_score_of_torchmetrics(logits, monkeypatch):
    inception = pytest.importorskip("torchmetrics.image.inception")
    metric = inception.InceptionScore(feature=torch.nn.Flatten(), splits=10).set_dtype(torch.float64)
    metric.features = [logits]
    monkeypatch.setattr(torch, "randperm", torch.arange)
    mean, std = metric.compute()
    ours = inception_scores(logits, 10)
    assert ours.mean().item() == pytest.approx(mean.item(), rel=1e-9)
    assert ours.std().item() == pytest.approx(std.item(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_and_recall_of_torch_fidelity(features, k):
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = prc.prc_features_to_metric(*features, prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=False, verbose=False)
    precision, recall = precision_recall(*features, k=k).tolist()
    assert precision == pytest.approx(theirs[prc.KEY_METRIC_PRECISION], rel=1e-6)
    assert recall == pytest.approx(theirs[prc.KEY_METRIC_RECALL], rel=1e-6)
    assert 0 < recall < precision <= 1 or k > 3
