"""The same features through torchmetrics, torch-fidelity and scipy's sqrtm."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.metrics import Moments, frechet_distance

N, D = 400, 48


class Flat(nn.Module):
    """The image's own first D pixels as features, in the shape torchmetrics wants of a custom extractor."""

    num_features = D

    def forward(self, x):
        return x.flatten(1)[:, :D].float()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (N, 3, 4, 4), generator=generator, dtype=torch.uint8)
    made = (real.flip(0).double() * 0.8 + 30 * torch.rand(N, 3, 4, 4, generator=generator)).to(torch.uint8)
    return real, made


@pytest.fixture(scope="module")
def ours(images):
    pair = []
    for x in images:
        pair.append(Moments(D))
        for chunk in Flat()(x).split(37):
            pair[-1].update(chunk)
    return frechet_distance(*pair)


def test_torchmetrics(images, ours):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


def test_torch_fidelity(images, ours):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(Flat()(x).double()) for x in images]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_scipy_sqrtm(images, ours):
    from scipy.linalg import sqrtm

    a, b = (Flat()(x).double().numpy() for x in images)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(cov_a @ cov_b).real
    theirs = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-9)
