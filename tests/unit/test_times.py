"""How t is drawn in training."""

from math import log

import pytest
import torch

from diffusion.schedules import EDM, VE, Cosine, Flow
from diffusion.times import Antithetic, Asymmetric, Importance, LogitNormal, LogNormal, Stratified, Uniform


@pytest.mark.parametrize("schedule", [Cosine(7), VE(7)], ids=repr)
def test_every_knot_is_equally_likely(schedule):
    """Trap 7: 1/T .. 1, T included and 0 not; chi-square with 6 degrees of freedom stays below its 1 - 1e-6 quantile, 38.3."""
    torch.manual_seed(0)
    t, weight = Uniform()(70_000, schedule)
    assert t.dtype == torch.float64 and t.shape == weight.shape == (70_000,)
    steps = (7 * t).round()
    assert torch.equal(steps / 7, t) and (weight == 1).all()
    counts = steps.long().bincount(minlength=8)
    assert counts[0] == 0 and ((counts[1:] - 10_000) ** 2 / 10_000).sum() < 38.3


def test_continuous_time_is_uniform_and_never_zero():
    torch.manual_seed(0)
    t, weight = Uniform()(100_000, Flow())
    assert t.dtype == torch.float64 and (t > 0).all() and (t <= 1).all() and (weight == 1).all()
    worst = (t.sort().values - torch.arange(1, 100_001) / 100_000).abs().max()
    assert worst < 2.7 / 100_000**0.5  # Kolmogorov-Smirnov, one in a million


def test_the_lowest_uniform_number_is_noise_and_not_data(monkeypatch):
    """torch.rand may be 0 and is never 1; t = 0 has no noise to learn from."""
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.zeros(n, **options))
    assert (Uniform()(3, Flow()).t == 1).all()


def test_knots_are_the_schedule_s_own():
    """A drawn t is, bit for bit, a time at which the label is a whole number."""
    t, _ = Uniform()(5000, Cosine())
    labels = Cosine().label(t).float()
    assert torch.equal(labels, labels.round()) and labels.min() >= 0 and labels.max() <= 999


def test_draws_come_from_torch_s_random_state():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(Uniform()(10, Cosine()).t)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], Uniform()(10, Cosine()).t)


EVERY = [Uniform(), Stratified(), Antithetic(), LogNormal(), LogitNormal(), Asymmetric()]


def kolmogorov(sample: torch.Tensor, cdf) -> float:
    """sqrt(n) times the largest gap between a sample's distribution and a cdf; above 2.7 one in a million."""
    x = sample.double().sort().values
    n = len(x)
    return ((cdf(x) - torch.arange(1, n + 1) / n).abs().max() * n**0.5).item()


@pytest.mark.parametrize("schedule", [Flow(), EDM(), Cosine(50), VE(50)], ids=repr)
@pytest.mark.parametrize("times", EVERY, ids=repr)
def test_a_draw_is_a_time_with_noise(times, schedule):
    torch.manual_seed(0)
    t, weight = times(1001, schedule)
    assert t.dtype == torch.float64 and t.shape == weight.shape == (1001,) and (t > 0).all() and (t <= 1).all() and (weight == 1).all()
    if schedule.num_timesteps:
        torch.testing.assert_close((50 * t).round() / 50, t, rtol=1e-15, atol=0)


@pytest.mark.parametrize("times", [Stratified(), Antithetic()], ids=repr)
def test_what_covers_evenly_is_still_uniform(times):
    """Each draw of many batches is uniform in itself; on a discrete schedule every knot is equally likely."""
    torch.manual_seed(0)
    draws = torch.stack([times(4, Flow()).t for _ in range(20_000)])
    for i in range(4):
        assert kolmogorov(draws[:, i], lambda x: x) < 2.7
    knots = torch.cat([times(7, Cosine(5)).t for _ in range(10_000)])
    counts = (5 * knots).round().long().bincount(minlength=6)[1:]
    assert len(counts) == 5 and ((counts - 14_000) ** 2 / 14_000).sum() < 33.4  # chi-square, 4 degrees of freedom, one in a million


def test_a_stratified_batch_has_one_draw_in_each_stratum():
    torch.manual_seed(0)
    for _ in range(20):
        t = Stratified()(16, Flow()).t.sort().values
        torch.testing.assert_close(t.diff(), torch.full((15,), 1 / 16, dtype=torch.float64), rtol=1e-9, atol=0)


def test_antithetic_pairs_mirror_each_other():
    torch.manual_seed(0)
    t = Antithetic()(9, Flow()).t
    torch.testing.assert_close(t[:4] + t[5:], torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_log_normal_and_logit_normal_are_what_they_say():
    torch.manual_seed(0)
    normal = torch.distributions.Normal(torch.tensor(-1.2).double(), 1.2)
    assert kolmogorov(EDM()(LogNormal()(50_000, EDM()).t)[1].log(), normal.cdf) < 2.7
    alpha, sigma = Flow()(LogNormal(0.3, 0.5)(50_000, Flow()).t)
    assert kolmogorov((sigma / alpha).log(), torch.distributions.Normal(torch.tensor(0.3).double(), 0.5).cdf) < 2.7
    assert (
        kolmogorov(LogitNormal(0.5, 2.0)(50_000, Flow()).t.logit(), torch.distributions.Normal(torch.tensor(0.5).double(), 2.0).cdf) < 2.7
    )
    assert (LogNormal(mean=log(1000))(50, EDM()).t == 1).sum() > 40  # beyond the largest sigma: the largest


@pytest.mark.parametrize(("threshold", "ratio"), [(0.7, 5.0), (0.2, 1.0), (0.5, 0.25), (0.0, 5.0), (1.0, 5.0)])
def test_asymmetric_times_are_so_many_times_as_likely_before_the_threshold(threshold, ratio):
    """In continuous time by the distribution's integral; on a discrete schedule by knots, each k/(T + tau(k - 1)) or 1/(T + tau(k - 1))."""
    torch.manual_seed(0)
    times, whole = Asymmetric(threshold, ratio), ratio * threshold + 1 - threshold
    t = times(50_000, Flow()).t
    assert kolmogorov(t, lambda x: (ratio * x.clamp(max=threshold) + (x - threshold).clamp(min=0)) / whole) < 2.7
    counts = (10 * times(50_000, Cosine(10)).t).round().long().bincount(minlength=11)[1:]
    knots = torch.arange(1, 11) / 10
    expected = 50_000 * torch.where(knots <= threshold + 1e-6, ratio, 1.0) / (10 * whole)
    assert ((counts - expected) ** 2 / expected).sum() < 46.0  # chi-square, 9 degrees of freedom, less than one in a million


# ---- importance


def losses_of(index: torch.Tensor) -> torch.Tensor:
    """A loss that depends on t only."""
    return (index.double() + 1) ** 2


def filled(T=5, **options) -> Importance:
    times = Importance(T, **options)
    for _ in range(10):
        times.observe(torch.arange(1, T + 1).double() / T, losses_of(torch.arange(T)))
    return times


def test_uniform_until_each_t_has_its_ten():
    times = Importance(5)
    assert torch.equal(times.probabilities(), torch.full((5,), 0.2, dtype=torch.float64))
    for _ in range(100):
        times.observe(torch.tensor([0.2, 0.4, 0.6, 0.8]).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for i in range(10):
        torch.testing.assert_close(times.probabilities(), torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-12, atol=0)
        times.observe(torch.tensor([1.0]).double(), torch.tensor([10.0 + i]))
    assert times.probabilities()[4] > 0.5


def test_probabilities_are_the_root_of_second_moments():
    """IDDPM eq. 18, in plain Python, with 0.1 % of the uniform distribution mixed in."""
    torch.manual_seed(0)
    times, kept = Importance(4), {i: [] for i in range(4)}
    for _ in range(40):
        index, loss = torch.randint(0, 4, (9,)), torch.rand(9).double() * 3
        times.observe((index + 1).double() / 4, loss)
        for i, value in zip(index.tolist(), loss.tolist(), strict=True):
            kept[i] = [*kept[i], value][-10:]
    rough = [(sum(v**2 for v in kept[i]) / 10) ** 0.5 for i in range(4)]
    want = [0.999 * r / sum(rough) + 0.001 / 4 for r in rough]
    assert times.probabilities().tolist() == pytest.approx(want, rel=1e-12)


def test_more_draws_of_one_t_than_there_is_room_for():
    times = Importance(2, history=3)
    times.observe(torch.tensor([0.5] * 5 + [1.0] * 3).double(), torch.tensor([9.0, 9, 1, 2, 3, 4, 4, 4]))
    assert sorted(times.losses[0].tolist()) == [1, 2, 3] and times.counts.tolist() == [5, 3]


def test_the_weighted_loss_is_unbiased_and_steadier():
    """E[w L] = the mean of L over all t, with less variance than uniform draws: 1/(T p), trap 19."""
    torch.manual_seed(0)
    times, T = filled(), 5
    t, weight = times(200_000, Cosine(T))
    index = (t * T).round().long() - 1
    weighted, truth = weight.double() * losses_of(index), losses_of(torch.arange(T)).mean().item()
    assert abs(weighted.mean() - truth) < 5 * weighted.std() / 200_000**0.5
    assert weighted.std() < 0.05 * losses_of(torch.arange(T)).std()
    torch.testing.assert_close(weight.double(), 1 / (T * times.probabilities()[index]), rtol=1e-6, atol=0)


def test_the_history_goes_with_the_state():
    times = filled()
    other = Importance(5)
    other.load_state_dict(times.state_dict())
    assert torch.equal(other.probabilities(), times.probabilities())
    assert not list(times.parameters())


def test_importance_needs_its_steps():
    for schedule in (Flow(), Cosine(7)):
        with pytest.raises(ValueError, match="times=importance has 5 steps"):
            Importance(5)(3, schedule)
    with pytest.raises(ValueError, match="this schedule is in continuous time; use a discrete one"):
        Importance(None)
    with pytest.raises(ValueError, match="history=0 of Importance must be between 1 and"):
        Importance(5, history=0)
