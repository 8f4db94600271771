"""The average of the weights: its value, its precision, and that nothing else is touched."""

import copy
import math

import pytest
import torch
from torch import nn

from diffusion.training.ema import EMA


class Model(nn.Module):
    def __init__(self, size: int = 3):
        super().__init__()
        self.layer = nn.Linear(size, 2)
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)  # not floating-point
        self.register_buffer("seen", torch.zeros(()))


def set_(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for weight in model.layer.parameters():
            weight.fill_(value)


def bits(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_average_is_the_recursion(decay):
    """Trap 28: d = min(decay, (1 + n)/(10 + n)) after n steps, in plain Python floats."""
    model, values = Model(), [0.5, -2.0, 3.25, 0.0, 1.0, 7.0]
    set_(model, 1.5)
    ema, expected = EMA(decay).start(model), 1.5
    for n, value in enumerate(values):
        d = min(decay, (1 + n) / (10 + n))
        assert ema.decay == d
        set_(model, value)
        ema.update(model)
        expected = d * expected + (1 - d) * value
        for shadow in ema.shadow.values():
            torch.testing.assert_close(shadow, torch.full_like(shadow, expected), rtol=1e-6, atol=1e-6)


def test_warm_up_forgets_the_initial_weights():
    """Trap 28: without warm-up 0.9999^10000 = 37 % of the initial weights are left after 10,000 steps; with it 5e-32."""
    assert pytest.approx(0.37, abs=0.005) == 0.9999**10_000
    ema = EMA(0.9999).start(Model())
    left = 0.0
    for n in range(10_000):
        ema.steps = n
        left += math.log(ema.decay)
    assert left < math.log(1e-25)
    ema.steps = 10**6
    assert ema.decay == 0.9999


def test_half_precision_weights_are_averaged_in_float32():
    """Trap 28: 1 - 0.9999 is below bfloat16's resolution, and a bfloat16 average would not move."""
    model = Model().bfloat16()
    set_(model, 1.0)
    ema = EMA(0.9999).start(model)
    ema.steps = 10**6
    set_(model, 2.0)
    for _ in range(100):
        ema.update(model)
    for shadow in ema.shadow.values():
        assert shadow.dtype == torch.float32
        torch.testing.assert_close(shadow, torch.full_like(shadow, 2 - 0.9999**100), rtol=1e-5, atol=0)
    stuck = torch.ones((), dtype=torch.bfloat16)
    assert torch.lerp(stuck, torch.tensor(2.0, dtype=torch.bfloat16), 1e-4) == 1


def test_only_floating_point_parameters_are_averaged():
    ema = EMA().start(Model())
    assert ema.shadow.keys() == {"layer.weight", "layer.bias"}


def test_starting_does_not_share_the_model_s_memory():
    model = Model()
    ema = EMA(0.5).start(model)
    before = copy.deepcopy(ema.shadow)
    set_(model, 9.0)
    assert same(ema.shadow, before)


def trained() -> tuple[Model, EMA]:
    torch.manual_seed(0)
    model = Model()
    ema = EMA(0.9).start(model)
    for _ in range(5):
        with torch.no_grad():
            for weight in model.layer.parameters():
                weight.add_(torch.randn_like(weight))
        ema.update(model)
    return model, ema


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_and_taken_off_again_bit_for_bit(dtype):
    """Trap 36."""
    model, ema = trained()
    model.to(dtype)
    own, shadow, pointers = bits(model), copy.deepcopy(ema.shadow), [p.data_ptr() for p in model.parameters()]
    with ema.applied(model):
        for name, value in ema.shadow.items():
            assert torch.equal(model.get_parameter(name), value.to(dtype))
        assert not same(bits(model), own)
    assert same(bits(model), own) and same(ema.shadow, shadow)
    assert [p.data_ptr() for p in model.parameters()] == pointers and all(p.grad is None for p in model.parameters())


def test_an_exception_takes_it_off_too():
    model, ema = trained()
    own = bits(model)
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        raise RuntimeError("inside")
    assert same(bits(model), own)


def test_the_optimizer_goes_on_with_the_model_s_own_weights():
    model, ema = trained()
    other = copy.deepcopy(model)
    with ema.applied(model):
        pass
    for each in (model, other):
        optimizer = torch.optim.AdamW(each.layer.parameters())
        each.layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert same(bits(model), bits(other))


def test_state_round_trip(tmp_path):
    """Plain tensors and numbers, loadable with weights_only, and the average goes on as if never stopped."""
    model, ema = trained()
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    resumed = EMA(0.9).start(Model())
    resumed.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert resumed.steps == ema.steps == 5 and same(resumed.shadow, ema.shadow)
    for each in (ema, resumed):
        each.update(model)
    assert same(resumed.shadow, ema.shadow)


def test_loading_copies():
    model, ema = trained()
    state = ema.state_dict()
    resumed = EMA(0.9).start(Model())
    resumed.load_state_dict(state)
    before = copy.deepcopy(resumed.shadow)
    ema.update(model)
    assert same(resumed.shadow, before)


def test_another_network_s_average_is_refused():
    with pytest.raises(ValueError, match="averaged weights are of another network"):
        EMA().start(Model(4)).load_state_dict(EMA().start(Model(3)).state_dict())
    with pytest.raises(ValueError, match="of another network"):
        EMA().start(nn.Linear(3, 2)).load_state_dict(EMA().start(Model(3)).state_dict())


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_a_decay_that_is_no_average_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay={decay} of EMA must be at least 0 and below 1"):
        EMA(decay)
