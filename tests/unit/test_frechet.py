"""Moments and the Fréchet distance: closed forms, any split, the precision of the sums, singular covariances."""

import warnings

import pytest
import torch

from diffusion.metrics import Moments, frechet_distance
from diffusion.metrics.frechet import merged, root, root_within


def moments(features):
    result = Moments(features.shape[1])
    result.update(features)
    return result


def gaussian(mean, cov, n=10):
    result = Moments(len(mean))
    result.count.fill_(n)
    result.mean, result.scatter = mean.double(), cov.double() * (n - 1)
    return result


def features(n, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + seed).to(dtype)


def test_closed_form_of_diagonal_gaussians():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.25]), torch.tensor([3.0, 0.5, 0.25])
    # |m_a - m_b|^2 + sum (s_a - s_b)^2 = 10 + (4 + 2.25 + 0)
    a, b = gaussian(mean_a, torch.diag(std_a**2)), gaussian(mean_b, torch.diag(std_b**2))
    assert frechet_distance(a, b) == pytest.approx(16.25, rel=1e-14)


def test_closed_form_of_2x2_gaussians_that_do_not_commute():
    cov_a, cov_b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
    # For 2x2 matrices tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)): tr AB = 9, det AB = 5 * 3.
    expected = 5 + 5 - 2 * (9 + 2 * 15**0.5) ** 0.5
    zero = torch.zeros(2)
    assert frechet_distance(gaussian(zero, cov_a), gaussian(zero, cov_b)) == pytest.approx(expected, rel=1e-13)


def test_distance_to_itself_is_zero_and_it_is_symmetric():
    a, b = moments(features(200, 16)), moments(features(300, 16, seed=1))
    assert abs(frechet_distance(a, a)) < 1e-12
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("sizes", [[100], [7] * 14 + [2], [64, 36], [1, 0, 98, 1], [0, 100, 0]])
def test_any_split_is_the_same(sizes):
    x = features(100, 12)
    split = Moments(12)
    for chunk in x.split(sizes):
        split.update(chunk)
    assert split.n == 100
    torch.testing.assert_close(split.mean, x.mean(0), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(split.cov, torch.cov(x.T), rtol=1e-13, atol=1e-14)


def test_merge_is_the_same_as_update():
    x = features(50, 5)
    a, b, empty = moments(x[:13]), moments(x[13:]), Moments(5)
    a.merge(b)
    a.merge(empty)
    empty.merge(a)
    for joined in (a, empty):
        assert joined.n == 50
        torch.testing.assert_close(joined.cov, torch.cov(x.T), rtol=1e-13, atol=1e-14)


def test_a_large_mean_costs_no_digits():
    """Raw float64 sums lose 10 digits of this covariance; the check that they do keeps the test honest."""
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = x + 2.0**17  # a power of two, so that the shift itself rounds by no more than 2^-36
    exact = torch.cov((shifted - 2.0**17).T)
    ours = Moments(4)
    for chunk in shifted.split(64):
        ours.update(chunk)
    raw = (shifted.T @ shifted - torch.outer(shifted.sum(0), shifted.sum(0)) / 1000) / 999
    assert (ours.cov - exact).abs().max() < 1e-10
    assert (raw - exact).abs().max() > 1e-7


def test_float32_features_are_summed_in_float64():
    x = features(5000, 3, seed=7, dtype=torch.float32)
    torch.testing.assert_close(moments(x).cov, torch.cov(x.double().T), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("n", [2, 10, 32])
def test_singular_covariance_is_finite_and_warned_of(n):
    a, b = moments(features(n, 32)), moments(features(500, 32, seed=1))
    with pytest.warns(UserWarning, match=rf"n = {n} images in d = 32 dimensions"):
        forth = frechet_distance(a, b)
    with pytest.warns(UserWarning, match=rf"n = {n} images in d = 32 dimensions"):
        back = frechet_distance(b, a)
    assert forth > 0
    assert forth == pytest.approx(back, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*singular")
@pytest.mark.parametrize("of_reference", [20, 500])
@pytest.mark.parametrize("n", [4, 32, 48, 49, 200])
def test_a_root_within_the_images_gives_the_distances_of_all_their_parts(n, of_reference):
    """d = 48. The full root's own rounding, of the d - n + 1 eigenvalues that are zero, is what is left between them."""
    a, x = moments(features(of_reference, 48)), features(n, 48, seed=1)
    parts = [moments(x[g::4]) for g in range(4)]
    r, few = root(a.cov), root_within(a, merged(parts))
    assert few.shape == (48, min(n - 1, 48))
    for some in (parts, parts[1:], parts[:2]) if n > 4 else (parts, parts[1:]):
        assert frechet_distance(a, merged(some), few) == pytest.approx(frechet_distance(a, merged(some), r), rel=1e-6)


def test_enough_images_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(moments(features(33, 32)), moments(features(33, 32, seed=1)))


def test_round_trip_through_a_dict():
    a = moments(features(40, 6))
    b = Moments.from_dict(a.to_dict())
    assert b.n == 40
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.scatter, b.scatter)
    b.update(features(3, 6))
    assert not torch.equal(a.scatter, b.scatter)


def test_without_a_process_group_all_reduce_is_a_copy():
    a = moments(features(40, 6))
    whole = a.all_reduce()
    a.update(features(10, 6))
    assert (whole.n, a.n) == (40, 50)


def test_bad_input_is_refused_by_a_sentence():
    with pytest.raises(ValueError, match=r"\[n, 6\] is needed"):
        Moments(6).update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="at least 2 images, and there are 1"):
        _ = moments(torch.ones(1, 3)).cov
    with pytest.raises(ValueError, match="same extractor"):
        frechet_distance(moments(features(9, 2)), moments(features(9, 3)))
