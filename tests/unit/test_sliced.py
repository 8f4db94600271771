"""The sliced Wasserstein distance: closed forms, an independent derivation, and the contract of a metric."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from processes import two_ranks
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm, wasserstein_distance

from diffusion.conditions import Classes
from diffusion.data import TwoMoons
from diffusion.metrics import KernelDistance, Passport, Pixels, SlicedWasserstein
from diffusion.metrics.sliced import directions, quantiles
from diffusion.support.build import build_stages
from diffusion.support.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "metric" / "sliced_wasserstein.yaml"


class Items:
    name, split, sha256, num_classes, labels = "made", "train", "ab" * 32, 0, None

    def __init__(self, images: torch.Tensor):
        self.images = images.numpy()


def normal(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def distance(made: torch.Tensor, real: torch.Tensor, **settings) -> float:
    metric = SlicedWasserstein(len(made), groups=0, **settings)
    metric.setup(Items(real), "cpu")
    metric.update(made)
    return metric.compute().item()


def test_a_shifted_set():
    """Each line moves by theta.v, so that SW_2^2 = v^T (mean of theta theta^T) v; over the sphere that is |v|^2 / d."""
    real, shift = normal(500, 3), torch.tensor([1.0, -2.0, 0.5])
    theta = directions(3, 40, seed=7)
    assert distance(real + shift, real, projections=40, seed=7) == pytest.approx(
        (theta @ shift.double()).square().mean().sqrt().item(), rel=1e-6
    )
    # The mean of (theta.v)^2 over 4,000 directions has a relative standard error of sqrt(4/5 / 4000) = 1.4 %, its root half of that.
    assert distance(real + shift, real, projections=4000) == pytest.approx((shift.norm() / 3**0.5).item(), rel=0.03)


def test_two_gaussians():
    """N(0, 1) and N(mu, s^2) in d dimensions: W_2^2 on theta is (theta.mu)^2 + (1 - s)^2, so SW_2^2 = |mu|^2 / d + (1 - s)^2."""
    mu, s = torch.tensor([0.6, 0.0, -0.8, 1.0]), 1.7
    made, real = mu + s * normal(6000, 4, seed=1), normal(9000, 4, seed=2)
    expected = (mu.square().sum() / 4 + (1 - s) ** 2).sqrt().item()
    assert distance(made, real, projections=1000) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("n, m", [(2000, 2000), (1000, 3000), (3000, 1000)])
def test_two_gaussians_on_a_line(n, m):
    """On a line no chance is left: the quantiles themselves are the sets, and the distance is sqrt(mu^2 + (1 - s)^2)."""
    made, real = (torch.from_numpy(norm.ppf((np.arange(k) + 0.5) / k))[:, None] for k in (n, m))
    assert distance(0.3 + 1.4 * made, real) == pytest.approx((0.3**2 + 0.4**2) ** 0.5, rel=3e-3)


def test_the_best_of_all_assignments():
    """The sorted pairing is the cheapest one of all, which SciPy finds without sorting."""
    made, real = normal(60, 5, seed=3).double(), 2 * normal(60, 5, seed=4).double() + 1
    squares = []
    for theta in directions(5, 9, seed=2):
        cost = ((made @ theta)[:, None] - (real @ theta)[None, :]).square().numpy()
        squares.append(cost[linear_sum_assignment(cost)].mean())
    assert distance(made, real, projections=9, seed=2) == pytest.approx(np.mean(squares) ** 0.5, rel=1e-9)


def test_a_set_above_another_on_a_line():
    """Where every quantile moves by the same amount W_2 is W_1, which SciPy has for unequal numbers too; 1/(4 m) of a step is lost."""
    real = torch.arange(400.0)[:, None] / 400
    made = torch.arange(100.0)[:, None] / 100 + 2
    assert distance(made, real) == pytest.approx(wasserstein_distance(made[:, 0], real[:, 0]), abs=1 / 400)
    assert distance(real, real) == 0


def test_quantiles():
    line = torch.arange(6.0, dtype=torch.float64)[:, None]
    assert torch.equal(quantiles(line, 6), line)
    assert quantiles(line, 3)[:, 0].tolist() == [0.5, 2.5, 4.5]  # (i + 1/2) / 3 of the way: the middles of pairs
    assert quantiles(line, 12)[:, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5.0]
    assert torch.equal(quantiles(line[:1], 4), line[:1].expand(4, 1))
    ragged = torch.cat([line, line**2], 1)
    assert torch.equal(quantiles(ragged, 3), torch.stack([quantiles(column[:, None], 3)[:, 0] for column in ragged.T], 1))


def test_directions_are_uniform_and_of_length_one():
    theta = directions(3, 5000, seed=0)
    torch.testing.assert_close(theta.norm(dim=1), torch.ones(5000, dtype=torch.float64))
    torch.testing.assert_close(theta.T @ theta / 5000, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.02)
    assert torch.equal(theta, directions(3, 5000, seed=0)) and not torch.equal(theta, directions(3, 5000, seed=1))


def test_the_order_does_not_matter_and_batches_neither():
    made, real, order = normal(90, 2), normal(70, 2, seed=1), torch.randperm(90, generator=torch.Generator().manual_seed(2))
    assert distance(made[order], real) == pytest.approx(distance(made, real), rel=1e-12)
    assert distance(made, real[order[order < 70]]) == pytest.approx(distance(made, real), rel=1e-12)
    metric = SlicedWasserstein(90, groups=5)
    metric.setup(Items(real), "cpu")
    results = []
    for size in (90, 7):
        metric.reset()
        for batch in made.split(size):
            metric.update(batch)
        metric.update(made[:0])
        results.append(metric.numbers())
    assert results[0] == pytest.approx(results[1], rel=1e-12) and list(results[0]) == [
        "sliced-wasserstein@90",
        "sliced-wasserstein@90/error",
    ]


def test_pictures_are_in_units_of_white():
    """uint8 pictures of any shape are as the same numbers between 0 and 1 in a row."""
    made, real = (torch.randint(0, 256, (n, 3, 5, 2), generator=torch.Generator().manual_seed(n), dtype=torch.uint8) for n in (40, 50))
    flat = distance(made.flatten(1).double() / 255, real.flatten(1).double() / 255)
    assert distance(made, real) == pytest.approx(flat, rel=1e-12)
    black, white = torch.zeros(9, 4, 4, 1, dtype=torch.uint8), torch.full((9, 4, 4, 1), 255, dtype=torch.uint8)
    assert distance(white, black, projections=3000) == pytest.approx(1, rel=0.1)  # |v|^2 / d = 1 in any number of dimensions


def test_the_standard_error_is_the_spread_of_other_draws():
    """The deviation of 60 independent numbers and the mean of their own errors agree to what 60 draws can tell."""
    real = normal(4000, 2)
    values, errors = [], []
    for seed in range(1, 61):
        metric = SlicedWasserstein(200, projections=32, groups=10)
        metric.setup(Items(real), "cpu")
        metric.update(normal(200, 2, seed=seed) * 1.3 + 0.5)
        value, error = metric.numbers().values()
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.35)


def test_classes_are_shared_out_over_the_groups():
    """Items of class i mod 5 that are far apart: dealt in their own order, five groups would be the classes and their error huge."""
    real = normal(1000, 1) * 0.01 + 100 * (torch.arange(1000) % 5)[:, None]
    made = normal(500, 1, seed=1) * 0.01 + 100 * (torch.arange(500) % 5)[:, None]
    metric = SlicedWasserstein(500, groups=5)
    metric.setup(Items(real), "cpu", Classes(5))
    metric.update(made)
    assert metric.numbers()["sliced-wasserstein@500/error"] < 0.01


def test_it_tells_moons_from_a_gaussian(tmp_path):
    train, test = (TwoMoons(cache=tmp_path, split=split).load() for split in ("train", "test"))
    metric = SlicedWasserstein(1000)
    metric.setup(train, "cpu")
    metric.update(torch.from_numpy(test.images[:1000]))
    same = metric.numbers()
    points = torch.from_numpy(train.images)
    metric.reset()
    metric.update(points.mean(0) + points.std(0) * normal(1000, 2))
    other = metric.numbers()
    assert same["sliced-wasserstein@1k"] < 0.06 < 0.1 < other["sliced-wasserstein@1k"]
    passport = Passport(**metric.passport(), sampler={}, nfe=1, guidance=None, ema=None, seeds={}, step=0, code="")
    assert passport.reference == {"name": "two_moons", "split": "train", "n": 10_000, "sha256": train.sha256}
    assert passport.settings == {"projections": 128, "seed": 0} and passport.quantisation == "float32"


def test_pictures_of_two_shapes_are_not_compared(tmp_path):
    """Though they have as many numbers; by their pixels neither."""
    wide, high, colour = (torch.zeros(12, *shape, dtype=torch.uint8) for shape in ((4, 6, 3), (6, 4, 3), (4, 18, 1)))
    for metric in (SlicedWasserstein(4, groups=0), KernelDistance(Pixels(), 4, tmp_path, subset_size=4)):
        metric.setup(Items(wide), "cpu")
        for other in (high, colour):
            with pytest.raises((ValueError, UserError), match=r"these are \[(6, 4, 3|4, 18, 1)\]"):
                metric.update(other[:4])


def test_the_file_builds_it():
    config = OmegaConf.to_container(OmegaConf.load(CONF))
    (metric,) = build_stages(config).values()
    assert list(config) == ["sliced_wasserstein"] and (metric.name, metric.projections, metric.groups) == ("sliced-wasserstein@1k", 128, 10)


def test_what_does_not_fit_is_refused():
    for settings, message in (
        (dict(n=1), "at least 2 items"),
        (dict(n=10, projections=0, groups=0), "at least one direction"),
        (dict(n=10, groups=6), "use 0, or 2 to 5"),
        (dict(n=10, groups=1), "use 0, or 2 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            SlicedWasserstein(**settings)
    metric = SlicedWasserstein(10, groups=0)
    with pytest.raises(ValueError, match="has no images"):
        metric.setup(Items(torch.empty(0, 2)), "cpu")
    metric.setup(Items(normal(5, 2)), "cpu")
    with pytest.raises(ValueError, match="compares with items of shape \[2\], and these are \[3\]"):
        metric.update(normal(4, 3))
    metric.update(normal(4, 2))
    with pytest.raises(ValueError, match="a number of 10 images, and 4 were given"):
        metric.compute()


WORKER = """
import sys
import torch.distributed as dist
sys.path.insert(0, {unit!r})
from test_sliced import numbers

rank, rendezvous, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{{rendezvous}}", rank=rank, world_size=2)
numbers(output, rank, 2, size=[9, 60][rank])        # rank 0 updates six times, rank 1 once
dist.destroy_process_group()
"""


def numbers(output, rank, world, size):
    """The numbers of 101 items, written as JSON; this rank has items rank, rank + world, ..."""
    metric = SlicedWasserstein(101, groups=4)
    metric.setup(Items(normal(75, 3)), "cpu", Classes(3))
    for indices in torch.arange(101)[rank::world].split(size):
        metric.update(normal(101, 3, seed=1)[indices] * 2)
    Path(output).write_text(json.dumps(metric.numbers()))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    two = two_ranks(WORKER.format(unit=str(Path(__file__).parent)), tmp_path)
    numbers(tmp_path / "one.json", 0, 1, size=64)
    assert two[0] == two[1] == pytest.approx(json.loads((tmp_path / "one.json").read_text()), rel=1e-12)
