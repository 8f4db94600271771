"""Differences of numbers: intervals cover the truth as often as they say, and false alarms are as rare, however often one looks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from diffusion.evaluation.contest import Contest, looks
from diffusion.evaluation.differences import Difference, holm, over_images, over_seeds, shared_out
from diffusion.metrics.frechet import Moments, frechet_distance, merged
from diffusion.metrics.intervals import jackknife, without_each
from diffusion.support.errors import UserError

DIM, GROUPS = 3, 10
CENTRES = torch.tensor([[-2.0, 0, 0], [0, 1, 2], [2, 0, -1]], dtype=torch.float64)


def mixture(z, k, shift=0.0, scale=0.6):
    """Samples of a mixture, the same for the same noise z [n, d] and component k [n] but for what tells two models apart."""
    return CENTRES[k] + shift + scale * z


def drawn(generator, n):
    return torch.randn(n, DIM, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator)


def moments(rows):
    found = Moments(DIM)
    found.update(rows)
    return found


@pytest.fixture(scope="module")
def real():
    return moments(mixture(*drawn(torch.Generator().manual_seed(99), 20_000)))


def measured(rows, real):
    """(the distance, what it is without each group)."""
    parts = [moments(rows[g::GROUPS]) for g in range(GROUPS)]

    def statistic(some):
        return torch.tensor([frechet_distance(real, merged(some))], dtype=torch.float64)

    return float(statistic(parts)), without_each(statistic, parts)[:, 0].tolist()


@pytest.mark.parametrize("paired", [True, False], ids=["the same seeds", "other seeds"])
def test_an_interval_of_95_percent_covers_the_truth(real, paired):
    """The truth is the expected difference of the two distances at this n, from many more draws."""
    generator, n, repeats = torch.Generator().manual_seed(5), 200, 400
    worse = {"shift": 0.15, "scale": 0.75}

    def both():
        first = drawn(generator, n)
        return mixture(*first), mixture(*(first if paired else drawn(generator, n)), **worse)

    truth = np.mean([frechet_distance(real, moments(b)) - frechet_distance(real, moments(a)) for a, b in (both() for _ in range(4000))])
    covered = []
    for _ in range(repeats):
        (a, without_a), (b, without_b) = (measured(rows, real) for rows in both())
        found = over_images(a, b, without_a, without_b)
        covered.append(abs(found.value - truth) <= found.half_width(0.05))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)  # its own standard error is 0.011


def test_the_same_seeds_make_the_interval_narrower(real):
    """Which is what they are for: a small difference of two models that share their noise."""
    generator = torch.Generator().manual_seed(1)
    widths = {True: [], False: []}
    for paired in widths:
        for _ in range(20):
            first = drawn(generator, 500)
            other = first if paired else drawn(generator, 500)
            (a, without_a), (b, without_b) = (measured(mixture(*d, shift=s), real) for d, s in ((first, 0.1), (other, 0.12)))
            widths[paired].append(over_images(a, b, without_a, without_b).half_width(0.05))
    assert np.mean(widths[True]) < 0.2 * np.mean(widths[False])


@dataclass
class Drawing:
    """A subject whose numbers are of samples drawn here: the first n * times of its own stream."""

    label: str
    rows: torch.Tensor
    real: Moments | None
    n: int = 100
    given: bool = False

    @property
    def weights_of(self):
        return self.label

    def own_metric(self):
        return {"fd": {"n": self.n}}

    def lines(self, metric, times):
        rows, key = self.rows[: self.n * times], f"fd@{self.n * times}"
        if self.real is None:
            parts = [rows[g::GROUPS, :1] for g in range(GROUPS)]
            value, without = float(rows[:, 0].mean()), without_each(lambda some: torch.cat(some).mean()[None], parts)[:, 0].tolist()
        else:
            value, without = measured(rows, self.real)
        return [{"numbers": [key], key: value, f"{key}/without": without, "higher": False, "passport": {"n": len(rows), "metric": key}}]


def contest(subjects, budget=None, alpha=0.05):
    made = Contest([[one] for one in subjects], budget, alpha)
    made.run()
    return list(made.verdicts.values())


def test_false_alarms_of_two_seeds_images_of_one_model_are_at_most_5_percent(real):
    """Two streams of one mixture, looked at four times, by a Fréchet distance. The mixture is not the real one: if it were, the distance
    would have no linear part, and the jackknife, which then overrates its error, no alarms at all."""
    generator, alarms = torch.Generator().manual_seed(2), []
    for _ in range(400):
        streams = [mixture(*drawn(generator, 800), shift=0.3) for _ in range(2)]
        alarms.append(contest([Drawing(name, rows, real) for name, rows in zip("ab", streams, strict=True)])[0].told)
    assert 0 < np.mean(alarms) <= 0.05 + 0.022  # two standard errors of 400


def test_false_alarms_of_five_subjects_at_four_looks_are_at_most_5_percent():
    """Any of four comparisons, at any of four looks, of means."""
    generator, alarms = torch.Generator().manual_seed(3), []
    for _ in range(1000):
        streams = torch.randn(5, 800, 1, dtype=torch.float64, generator=generator)
        alarms.append(any(verdict.told for verdict in contest([Drawing(str(i), rows, None) for i, rows in enumerate(streams)])))
    assert np.mean(alarms) <= 0.05 + 0.014


def test_looking_and_comparing_without_correction_would_raise_false_alarms():
    """That the test above can fail: each comparison of each look at 5 percent."""
    generator, alarms = torch.Generator().manual_seed(3), []
    for _ in range(300):
        streams = torch.randn(5, 800, 1, dtype=torch.float64, generator=generator)
        lines = [[Drawing("", rows, None).lines({}, times)[0] for times in (1, 2, 4, 8)] for rows in streams]
        found = [
            over_images(a[f"fd@{n}"], b[f"fd@{n}"], a[f"fd@{n}/without"], b[f"fd@{n}/without"]).p
            for other in lines[1:]
            for n, a, b in zip((100, 200, 400, 800), lines[0], other, strict=True)
        ]
        alarms.append(min(found) <= 0.05)
    assert np.mean(alarms) > 0.2


def test_a_difference_is_found_as_soon_as_it_can_be_told_and_no_more_is_drawn():
    noise = torch.randn(1600, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    much, little, none = (noise * scale + shift for scale, shift in ((1.02, 3.0), (1.05, 0.01), (1, 0)))
    subjects = [Drawing("first", noise, None), Drawing("much", much, None), Drawing("little", little, None), Drawing("none", none, None)]
    verdicts = {verdict.other: verdict for verdict in contest(subjects, budget=1600)}
    assert (verdicts["much"].told, verdicts["much"].n, verdicts["much"].better) == (True, 100, "first")
    assert str(verdicts["much"]).startswith("first is better by 3")
    assert verdicts["little"].n > 100
    assert not verdicts["none"].told and verdicts["none"].n == 1600 and verdicts["none"].difference.value == 0


def test_how_many_would_do_is_how_many_do():
    """Of a difference of half a standard deviation: as many images as `needed` says find it four times of five, by ten groups of them."""
    generator, shift, level = torch.Generator().manual_seed(4), 0.5, 0.0267
    few = Difference(shift, (2 / 50) ** 0.5, 9)  # of 50 images of each, whose values have variance 1
    n = few.needed(50, level)
    told = []
    for _ in range(1000):
        rows = (torch.randn(n, 1, dtype=torch.float64, generator=generator) + s for s in (0, shift))
        (a,), (b,) = (Drawing("", of, None, n).lines({}, 1) for of in rows)
        told.append(over_images(*(of[f"fd@{n}{end}"] for end in ("", "/without") for of in (a, b))).p <= level)
    assert 0.74 < np.mean(told) < 0.84
    assert Difference(0.0, 1.0, 9).needed(50, 0.05) is None


def test_how_many_runs_would_do_is_how_many_do_but_for_what_more_runs_do_not_change():
    generator, shift = torch.Generator().manual_seed(5), 1.0
    runs = Difference(shift, (2 / 3) ** 0.5, 4.0).needed(3, 0.05, grows=True)
    told = [
        ttest_ind(*(torch.randn(runs, dtype=torch.float64, generator=generator) + s for s in (0, shift)), equal_var=False).pvalue <= 0.05
        for _ in range(1000)
    ]
    assert 0.74 < np.mean(told) < 0.86
    assert Difference(1.0, 0.8, 4.0, lasting=0.5).needed(3, 0.05, grows=True) is None  # of images that are the same for all runs


def test_what_the_images_do_to_one_configuration_is_in_the_error_over_seeds():
    """Six runs, measured over the same images, whose effect on a configuration is as large as that of a seed: hardly more false alarms than
    5 percent, where Welch's test alone has twice as many."""
    generator, alarms, alone = torch.Generator().manual_seed(6), [], []
    for _ in range(600):
        images = torch.randn(2, 400, 1, dtype=torch.float64, generator=generator) * 20  # whose mean has standard deviation 1
        values, without = [], []
        for of_configuration in images:
            seeds = torch.randn(3, dtype=torch.float64, generator=generator)
            line = Drawing("", of_configuration, None, 400).lines({}, 1)[0]
            values.append([line["fd@400"] + float(seed) for seed in seeds])
            without.append([value + float(seeds.mean()) for value in line["fd@400/without"]])
        of_images = over_images(*map(np.mean, values), *without)
        alarms.append(over_seeds(*values, of_images).p <= 0.05)
        alone.append(over_seeds(*values, Difference(0.0, 0.0, 9)).p <= 0.05)
    assert np.mean(alarms) <= 0.05 + 0.018 and np.mean(alone) > 0.09


def test_the_last_look_has_all_that_the_budget_allows():
    metric = {"fd": {"n": 1000}, "other": {"n": 500}}
    assert [looks(metric, budget, False) for budget in (None, 1000, 6500, 8999)] == [[1, 2, 4, 8], [1], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_over_seeds_is_welch_s_test():
    first, other = [3.1, 2.9, 3.4, 3.0], [2.5, 2.8, 2.7]
    none = Difference(0.0, 0.0, 9)  # of images without an error
    found, expected = over_seeds(first, other, none), ttest_ind(other, first, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert (found.value - found.half_width(0.05), found.value + found.half_width(0.05)) == pytest.approx((low, high))
    assert over_seeds([1.0, 1.0], [1.0, 1.0], none).p == 1 and over_seeds([1.0, 1.0], [2.0, 2.0], none).p == 0


def test_holm_tests_the_smallest_at_a_share_and_stops_at_the_first_that_is_kept():
    assert holm([0.001, 0.04, 0.02, 0.9], 0.05) == pytest.approx([0.05 / 4, 0.05 / 3, 0.05 / 3, 0.05 / 3])
    assert holm([0.01, 0.04, 0.02], 0.05) == pytest.approx([0.05 / 3, 0.05, 0.05 / 2])
    assert sum(shared_out(0.05, [1, 2, 4, 8])) == pytest.approx(0.05)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """In closed form: s / sqrt(G) of the groups' means."""
    values = torch.randn(10, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    without = without_each(lambda parts: torch.cat(parts).mean()[None], list(values))
    assert float(jackknife(without)) == pytest.approx(float(values.mean(1).std()) / 10**0.5, rel=1e-12)


def test_numbers_of_other_groups_are_refused():
    with pytest.raises(UserError, match="10 and 5 groups"):
        over_images(1.0, 2.0, [1.0] * 10, [2.0] * 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fd@100": None}, "not a finite number"),
        ({"fd@100/without": [1.0, None]}, "not a finite number"),
        ({"fd@100/without": "1"}, "not a finite number"),
        ({"numbers": []}, "no number with groups"),
        ({"passport": {"n": 100, "metric": "fd@100", "reference": {"name": "other"}}}, "not measured alike: their reference"),
        ({"numbers": ["fd@50"], "fd@50": 1.0, "fd@50/without": [1.0] * 10}, "as many images"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said):
    """Of damaged lines too, and of a folder of others."""
    rows = torch.randn(100, 1, dtype=torch.float64)

    class Strange(Drawing):
        def lines(self, metric, times):
            return [super().lines(metric, times)[0] | change]

    with pytest.raises(UserError, match=said):
        contest([Drawing("first", rows, None), Strange("other", rows, None)], budget=100)
