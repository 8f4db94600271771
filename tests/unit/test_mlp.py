"""The perceptron for vectors: shapes, conditioning, precision, compilation, learning, errors."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion.denoiser import Denoiser
from diffusion.networks import MLP, Encoder
from diffusion.objectives import Simple
from diffusion.parameterization import Epsilon
from diffusion.schedules import Cosine

CONF = Path(__file__).parents[2] / "conf" / "network" / "mlp.yaml"
TINY = dict(in_channels=3, out_channels=6, width=32, depth=2)


def awake(net: MLP) -> MLP:
    """Random values in place of the zero-initialised layers, so that every path reaches the output."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 3), torch.linspace(0, 999, 3)


@pytest.fixture(params=[0, 5])
def case(request):
    return awake(MLP(**TINY, num_classes=request.param)), torch.tensor([0, 4, -1]) if request.param else None


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_shape_and_zero_output_at_init(depth):
    out = MLP(**TINY | {"depth": depth}, num_classes=5)(*inputs(), torch.tensor([0, 4, -1]))
    assert out.shape == (3, 6) and not out.any()


def test_blocks_start_as_the_identity():
    net, x = MLP(**TINY), torch.randn(2, 32)
    assert torch.equal(net.blocks[0](x, net.given(torch.tensor([1.0, 2.0]), None)), x)


def test_every_parameter_is_used(case):
    net, cond = case
    net(*inputs(), cond).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_time_class_and_each_coordinate_matter(case):
    net, cond = case
    x, label = inputs()
    out = net(x, label, cond)
    assert (out - net(x, label + 1, cond)).abs().amax(1).min() > 1e-4
    for i in range(3):
        assert (out - net(x + torch.eye(3)[i], label, cond)).abs().amax(1).min() > 1e-3
    if cond is not None:
        assert (out - net(x, label, cond.flip(0)))[::2].abs().amax(1).min() > 1e-3
        torch.testing.assert_close(net(x, label, torch.full((3,), -1)), net(x, label), rtol=0, atol=0)


def test_each_sample_is_alone(case):
    net, cond = case
    x, label = inputs()
    alone = net(x[1:2], label[1:2], None if cond is None else cond[1:2])
    torch.testing.assert_close(net(x, label, cond)[1:2], alone, rtol=0, atol=1e-5)


def test_compiles_in_one_graph(case):
    net, cond = case
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*inputs(), cond), net(*inputs(), cond), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_another_precision(case, dtype):
    net, cond = case
    x, label = inputs()
    assert net.to(dtype)(x.to(dtype), label, cond).dtype == dtype


def test_it_learns_where_the_data_are():
    """Of data at one point x_0 the loss of the right answer is 0; of a normal it is not, and an untrained network's is 1."""
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(2, 2, width=64, depth=2), Cosine(100), Epsilon())
    optimizer, x0 = torch.optim.Adam(denoiser.parameters(), 3e-3), torch.tensor([[0.5, -1.0]]).expand(128, 2)
    losses = []
    for _ in range(200):
        t = torch.randint(1, 101, (128,)).double() / 100
        loss = Simple()(denoiser, x0, t, torch.randn(128, 2))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.3) and sum(losses[-20:]) / 20 < 0.1


def test_the_file_says_its_own_settings_alone():
    config = OmegaConf.to_container(OmegaConf.load(CONF))
    assert config == {"_target_": "diffusion.networks.MLP", "width": 128, "depth": 4}
    assert 0.2e6 < sum(p.numel() for p in MLP(width=128, depth=4).parameters()) < 0.5e6


@pytest.mark.parametrize(
    "change, message", [(dict(width=31), "width must be even"), (dict(width=2), "at least 4"), (dict(depth=-1), "depth=-1")]
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MLP(**TINY | change)


def test_what_it_was_not_made_for_is_refused():
    x, label = inputs()
    for wrong in (torch.randn(3, 4), torch.randn(3, 3, 1, 1), torch.randn(3)):
        with pytest.raises(ValueError, match=r"takes vectors \[b, 3\], and these items are \[3"):
            MLP(**TINY)(wrong, label)
    with pytest.raises(ValueError, match="unconditional"):
        MLP(**TINY)(x, label, torch.tensor([1, 2, 0]))
    with pytest.raises(ValueError, match="made of a U-Net's way down, and a MLP has none"):
        Encoder(MLP(**TINY), 3)
