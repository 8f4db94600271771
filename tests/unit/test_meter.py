"""Running means of the losses, and whether they are finite."""

import pytest
import torch

from diffusion.training import loss_meter
from diffusion.training.loss_meter import Arriving, Meter


def stepped(meter, number, *batches, norm=1.0):
    """One optimizer step of these batches: the keywords of `update`."""
    for losses, t, *weight in batches:
        meter.update(losses, t, *weight)
    meter.end_step(number, torch.tensor(norm))


def test_means_by_term_and_by_quarter_of_time():
    meter = Meter()
    first, second = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([5.0, 7.0, 5.0, 7.0])
    batches = (
        ({"loss": first, "simple": first * 2}, torch.tensor([0.1, 0.3, 0.25, 1.0])),
        ({"loss": second, "simple": second * 2}, torch.tensor([0.74, 0.76] * 2)),
    )
    stepped(meter, 0, *batches, norm=2.0)
    means = meter.read()
    assert means == pytest.approx(
        {
            "loss": (3.0 + 6.0) / 2,  # of the batches' means, as the optimizer saw them
            "loss/simple": 9.0,
            "gradient_norm": 2.0,
            "loss/t1of4": (1.0 + 3.0) / 2,  # 0.25 belongs to the first quarter, (0, 1/4]
            "loss/t2of4": 2.0,
            "loss/t3of4": 5.0,
            "loss/t4of4": (6.0 + 7.0 + 7.0) / 3,
            "loss/simple/t1of4": 4.0,
            "loss/simple/t2of4": 4.0,
            "loss/simple/t3of4": 10.0,
            "loss/simple/t4of4": 40.0 / 3,
        }
    )
    assert all(isinstance(value, float) for value in means.values())


def test_importance_weights_make_the_means_those_over_uniform_t():
    """Of L = 1 at t = 1/4 and 9 at t = 1, drawn with p = 1/10 and 9/10: 5, not 8.2."""
    meter, t = Meter(), torch.tensor([0.25, *[1.0] * 9])
    losses, weight = torch.where(t < 1, 1.0, 9.0), torch.where(t < 1, 5.0, 5 / 9)
    stepped(meter, 0, ({"loss": losses}, t, weight))
    assert meter.read() == pytest.approx({"loss": 5.0, "gradient_norm": 1.0, "loss/t1of4": 1.0, "loss/t4of4": 9.0})


def one(value, t=0.5):
    return {"loss": torch.tensor([value])}, torch.tensor([t])


def test_a_step_counts_the_same_in_however_many_batches():
    """As in a run that is resumed with another accumulate between two readings."""
    losses, t, weight = torch.rand(3, 8), torch.rand(3, 8), torch.rand(3, 8)
    found = []
    for batches in ((1, 1, 1), (1, 2, 4)):
        meter = Meter()
        for number, parts in enumerate(batches):
            for value, time, by in zip(*(x[number].chunk(parts) for x in (losses, t, weight)), strict=True):
                meter.update({"loss": value}, time, by)
            meter.end_step(number, torch.tensor(1.0))
        found.append(meter.read())
    assert found[0] == pytest.approx(found[1])


def test_reading_starts_again():
    meter = Meter()
    stepped(meter, 0, one(1.0, 0.1))
    meter.read()
    stepped(meter, 1, one(5.0, 0.9))
    assert meter.read() == {"loss": 5.0, "gradient_norm": 1.0, "loss/t4of4": 5.0}  # a quarter with no samples is left out
    assert meter.read() == {}


def test_nothing_seen():
    assert Meter().read() == {} and Meter().bad_step() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [0, 2])
def test_the_first_bad_step_is_remembered_and_the_means_end_before_it(bad, first):
    """The bad step's other batch, the norm, and all that follows are left out, though they are finite."""
    meter = Meter()
    for number in range(5):
        assert meter.bad_step() == (first if number > first else None)
        stepped(meter, number, one(1.0 + number), one(bad if number == first else 1.0 + number), norm=float(number))
    assert meter.bad_step() == first
    assert meter.read() == ({"loss": 1.5, "gradient_norm": 0.5, "loss/t2of4": 1.5} if first else {})
    assert meter.bad_step() == first


def test_of_a_device_a_step_is_looked_at_four_steps_later(monkeypatch):
    """Within five steps in all, and after as many steps on each rank, however fast it is; with `wait` at once."""
    asked = []

    class Event:
        def __init__(self, device):
            pass

        def record(self):
            self.step = len(asked)

        def synchronize(self):
            asked.append(self)

    class Far(Arriving):
        def __init__(self, value):
            super().__init__(value)
            self.event = Event(value.device)

    monkeypatch.setattr(loss_meter, "Arriving", Far)
    meter = Meter()
    noticed = []
    for number in range(10):
        stepped(meter, number, one(float("nan") if number == 3 else 1.0))
        noticed.append(meter.bad_step())
    assert noticed == [None] * 7 + [3] * 3 and len(asked) == 4  # those of steps 0 to 3
    meter = Meter()
    stepped(meter, 0, one(float("nan")))
    assert meter.bad_step() is None and meter.bad_step(wait=True) == 0


def test_the_sums_travel():
    """Bit for bit: the mean of all steps, half of them before the checkpoint."""
    whole, first, second = Meter(), Meter(), Meter()
    for number, value in enumerate([0.1, 0.2, 0.3, 0.7]):
        if number == 2:
            second.load_state_dict(first.state_dict(), "cpu")
        for meter in (whole, first if number < 2 else second):
            stepped(meter, number, one(value, value), norm=value)
    assert second.read() == whole.read()
    second.load_state_dict(Meter().state_dict(), "cpu")
    assert second.read() == {}


def test_half_precision_losses_are_summed_in_more_and_no_graph_is_kept():
    meter, t = Meter(), torch.tensor([0.5])
    for i in range(1000):
        loss = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
        stepped(meter, i, ({"loss": loss * 1}, t))
    assert not meter.sums.requires_grad and meter.sums[0] == 1000  # bfloat16 stops counting at 256
    assert meter.read()["loss"] == 1.0
