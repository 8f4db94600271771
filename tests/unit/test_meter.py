"""Running means of the losses."""

import pytest
import torch

from diffusion.training.loss_meter import Meter


def test_means_by_term_and_by_quarter_of_time():
    meter = Meter()
    first, second = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([5.0, 7.0])
    meter.update({"loss": first, "simple": first * 2}, torch.tensor([0.1, 0.3, 0.25, 1.0]), 0)
    meter.update({"loss": second, "simple": second * 2}, torch.tensor([0.74, 0.76]), 1)
    meter.gradient_norm(torch.tensor(2.0))
    means = meter.read()
    assert means == pytest.approx(
        {
            "loss": (3.0 + 6.0) / 2,  # of the batches' means, as the optimizer saw them
            "loss/simple": 9.0,
            "gradient_norm": 2.0,
            "loss/t1of4": (1.0 + 3.0) / 2,  # 0.25 belongs to the first quarter, (0, 1/4]
            "loss/t2of4": 2.0,
            "loss/t3of4": 5.0,
            "loss/t4of4": (6.0 + 7.0) / 2,
            "loss/simple/t1of4": 4.0,
            "loss/simple/t2of4": 4.0,
            "loss/simple/t3of4": 10.0,
            "loss/simple/t4of4": 13.0,
        }
    )
    assert all(isinstance(value, float) for value in means.values())


def test_importance_weights_make_the_means_those_over_uniform_t():
    """Of L = 1 at t = 1/4 and 9 at t = 1, drawn with p = 1/10 and 9/10: 5, not 8.2."""
    meter, t = Meter(), torch.tensor([0.25, *[1.0] * 9])
    losses, weight = torch.where(t < 1, 1.0, 9.0), torch.where(t < 1, 5.0, 5 / 9)
    meter.update({"loss": losses}, t, 0, weight)
    assert meter.read() == pytest.approx({"loss": 5.0, "loss/t1of4": 1.0, "loss/t4of4": 9.0})


def test_reading_starts_again():
    meter = Meter()
    meter.update({"loss": torch.tensor([1.0])}, torch.tensor([0.1]), 0)
    meter.read()
    meter.update({"loss": torch.tensor([5.0])}, torch.tensor([0.9]), 1)
    assert meter.read() == {"loss": 5.0, "loss/t4of4": 5.0}  # a quarter with no samples is left out
    assert meter.read() == {}


def test_nothing_seen():
    assert Meter().read() == {} and Meter().bad_step() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_remembered(bad):
    meter, t = Meter(), torch.tensor([0.5, 0.6])
    for number, value in enumerate([1.0, 2.0, bad, 3.0, bad]):
        assert meter.bad_step() == (2 if number > 2 else None)
        meter.update({"loss": torch.tensor([1.0, value])}, t, number)
    assert meter.bad_step() == 2
    meter.read()
    assert meter.bad_step() == 2


def test_step_zero_can_be_bad():
    meter = Meter()
    meter.update({"loss": torch.tensor([float("nan")])}, torch.tensor([0.5]), 0)
    assert meter.bad_step() == 0


def test_half_precision_losses_are_summed_in_float32_and_no_graph_is_kept():
    meter, t = Meter(), torch.tensor([0.5])
    for i in range(1000):
        loss = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
        meter.update({"loss": loss * 1}, t, i)
    assert not meter.sums["loss"].requires_grad and meter.sums["loss"] == 1000  # bfloat16 stops counting at 256
    assert meter.read()["loss"] == 1.0
