"""Post-hoc EMA against closed forms on known trajectories of the weights."""

import math

import pytest
import torch
from torch import nn

from diffusion.average import averaged, write_average
from diffusion.training.power_ema import PostHoc, Power, coefficients, exponent, inner_product


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_the_paper_s(std, gamma):
    """2312.02696, sec. 3.1 states 16.97 and 6.94; the deviation of t^gamma on (0, 1) by quadrature gives the length back."""
    assert exponent(std) == pytest.approx(gamma, abs=0.005)
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    p = t ** exponent(std)
    mean = (p * t).sum() / p.sum()
    assert ((p * (t - mean) ** 2).sum() / p.sum()).sqrt().item() == pytest.approx(std, rel=1e-6)
    g = exponent(std)
    assert g**3 + 7 * g**2 + (16 - std**-2) * g + 12 - std**-2 == pytest.approx(0, abs=1e-9 * std**-2 * g)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3])
def test_lengths_that_are_none_are_refused(std):
    with pytest.raises(ValueError, match=f"relative length of {std} is outside"):
        exponent(std)


@pytest.mark.parametrize(("a", "b"), [((30.0, 2.0), (50.0, 7.0)), ((50.0, 7.0), (30.0, 2.0)), ((40.0, 3.0), (40.0, 3.0))])
def test_inner_products_by_quadrature(a, b):
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) * 50 / 400_000
    profiles = [torch.where(t < n, (g + 1) * (t / n) ** g / n, 0.0) for n, g in (a, b)]
    want = (profiles[0] * profiles[1]).sum().item() * 50 / 400_000
    got = inner_product(*(torch.tensor(v, dtype=torch.float64) for v in (*a, *b)))
    assert got.item() == pytest.approx(want, rel=1e-4)


class Model(nn.Module):
    """Two weights: theta_i = i at step i, and theta_i = (i/1000)^2."""

    def __init__(self):
        super().__init__()
        self.line, self.curve = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def at(self, i: int) -> None:
        with torch.no_grad():
            self.line.fill_(i)
            self.curve.fill_((i / 1000) ** 2)


def trained(steps: int, every: int, folder=None, stds=(0.05, 0.10)) -> tuple[Model, PostHoc]:
    model = Model()
    ema = PostHoc(0.9, stds).start(model)
    for i in range(1, steps + 1):
        model.at(i)
        ema.update(model)
        if folder is not None and i % every == 0:
            averages = [{k: v.half() for k, v in average.shadow.items()} for average in ema.averages]
            torch.save({"step": i, "stds": list(stds), "averages": averages}, folder / f"step={i:08d}.pt")
    return model, ema


def test_the_average_is_the_power_function_s():
    """shadow_n = sum_i w_i theta_i with w_i = (1 - beta_i) prod_{j>i} beta_j, worked out here from the end; and of theta_i = i it is
    (gamma + 1)/(gamma + 2) n, the profile's mean, to order 1/n."""
    n = 500
    _, ema = trained(n, n)
    for average, std in zip(ema.averages, (0.05, 0.10), strict=True):
        gamma, left, total = exponent(std), 1.0, 0.0
        for i in range(n, 0, -1):
            beta = (1 - 1 / i) ** (gamma + 1)
            total += left * (1 - beta) * i
            left *= beta
        assert left == 0
        assert average.shadow["line"].item() == pytest.approx(total, rel=1e-5)
        assert total == pytest.approx((gamma + 1) / (gamma + 2) * n, abs=1.0)


def test_a_snapshot_is_its_own_reconstruction():
    steps, stds = [100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1]
    for i in range(4):
        want = torch.zeros(4, dtype=torch.float64)
        want[i] = 1
        torch.testing.assert_close(coefficients(steps, stds, steps[i], stds[i]), want, rtol=0, atol=1e-6)


@pytest.fixture
def run(tmp_path):
    """A run's folder of 1000 steps, 16 snapshots in float16."""
    folder = tmp_path / "checkpoints" / "ema"
    folder.mkdir(parents=True)
    model, ema = trained(1000, 62, folder)
    (tmp_path / "config.yaml").write_text("{}")
    state = {f"denoiser.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 0, "ema": ema.state_dict(), "global_step": 1000}, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


@pytest.mark.parametrize("std", [0.04, 0.05, 0.07, 0.10, 0.15])
@pytest.mark.parametrize("step", [None, 500])
def test_any_length_afterwards(run, std, step):
    """E over the profile of theta = t is (gamma + 1)/(gamma + 2) n and of (t/1000)^2 (gamma + 1)/(gamma + 3) (n/1000)^2: float16
    snapshots, the discrete sum and the least squares leave 1 % together."""
    n, shadow = averaged(run, std, step)
    assert n == (496 if step else 992)
    gamma = exponent(std)
    assert shadow["line"].item() == pytest.approx((gamma + 1) / (gamma + 2) * n, rel=0.01)
    assert shadow["curve"].item() == pytest.approx((gamma + 1) / (gamma + 3) * (n / 1000) ** 2, rel=0.015)


def test_written_as_a_checkpoint(run):
    path = write_average(run, 0.07)
    checkpoint = torch.load(path, weights_only=True)
    assert path.name == "ema=0.07.ckpt" and torch.equal(checkpoint["ema"]["shadow"]["line"], averaged(run, 0.07)[1]["line"])
    assert checkpoint["state_dict"].keys() == {"denoiser.line", "denoiser.curve"}


def test_without_snapshots_there_is_a_sentence(run):
    with pytest.raises(Exception, match="no snapshots to average up to step 10; train with ema=posthoc"):
        averaged(run, 0.07, 10)


def test_state_round_trip_and_the_plain_average_beside():
    model, ema = trained(50, 100)
    other = PostHoc(0.9).start(Model())
    other.load_state_dict(ema.state_dict())
    for each in (ema, other):
        model.at(51)
        each.update(model)
    assert other.steps == 51 and all(
        torch.equal(a.shadow["line"], b.shadow["line"]) for a, b in zip(ema.averages, other.averages, strict=True)
    )
    assert torch.equal(other.shadow["line"], ema.shadow["line"]) and ema.decay == min(0.9, 52 / 61)
    with ema.applied(model):
        assert model.line == ema.shadow["line"]
    with pytest.raises(ValueError, match=r"holds 2 post-hoc averages where ema\.stds names 1"):
        PostHoc(0.9, [0.05]).start(Model()).load_state_dict(ema.state_dict())
    assert math.isclose(ema.averages[0].decay, (1 - 1 / 52) ** (exponent(0.05) + 1))


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_a_power_average_is_the_weighted_mean_of_its_profile(std):
    """Of theta_i = i over n steps, in the limit n (gamma + 1)/(gamma + 2); the same part of the training at 400 steps as at 4,000."""
    gamma, ema, model = exponent(std), Power(std), Model()
    ema.start(model)
    for i in range(1, 4001):
        model.at(i)
        ema.update(model)
        if i in (400, 4000):
            assert ema.shadow["line"].item() / i == pytest.approx((gamma + 1) / (gamma + 2), abs=2 / i)
    assert ema.describe() == {"std": std}


@pytest.mark.parametrize("std", [0.0, 0.2887, 1.0, -0.1])
def test_a_power_average_of_no_length_is_refused(std):
    with pytest.raises(ValueError, match=f"{std}"):
        Power(std)
