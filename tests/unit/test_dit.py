"""The diffusion transformer: shapes, conditioning, precision, compilation, errors."""

import pytest
import torch
from composing import composed

from diffusion.networks import DiT
from diffusion.networks.dit import positions
from diffusion.support.build import build

TINY = dict(in_channels=3, out_channels=6, image_size=8, patch=2, width=32, depth=2, heads=4)


def awake(net: DiT) -> DiT:
    """Random values in place of the zero-initialised layers, so that every path reaches the output."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(batch: int = 3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(0, 999, batch)


CONDITIONS = {
    "none": (dict(), None),
    "classes": (dict(num_classes=5), torch.tensor([0, 4, -1])),
    "context": (dict(context_channels=6), torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(2))),
}


@pytest.fixture(params=CONDITIONS)
def case(request):
    settings, cond = CONDITIONS[request.param]
    return awake(DiT(**TINY, **settings)), cond


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_shape_and_zero_output_at_init(patch):
    out = DiT(**TINY | {"patch": patch}, num_classes=5)(*inputs(), torch.tensor([0, 4, -1]))
    assert out.shape == (3, 6, 8, 8) and not out.any()


def test_every_parameter_is_used(case):
    net, cond = case
    net(*inputs(), cond).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_blocks_start_as_the_identity():
    net, x = DiT(**TINY, context_channels=6), torch.randn(2, 16, 32)
    given = net.given(torch.tensor([1.0, 2.0]), torch.randn(2, 3, 6))
    assert torch.equal(net.blocks[0](x, given), x)


def test_a_patch_is_put_back_where_it_was():
    """With the output layer set to pick pixels out of a token, the network returns a shuffle-free image."""
    net = DiT(in_channels=1, out_channels=1, image_size=8, patch=2, width=4, depth=1, heads=1)
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    tokens = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2)  # [1, 16, 4]: row by row, in the patch row by row
    assert torch.equal(net._image(tokens, rows=4), x)
    wide = torch.nn.functional.unfold(x[:, :, :4], 2, stride=2).transpose(1, 2)
    assert torch.equal(net._image(wide, rows=2), x[:, :, :4])


def test_the_place_of_a_patch_matters():
    """A constant image gives different patches: attention alone could not tell them apart."""
    net = awake(DiT(**TINY))
    out = net(torch.ones(1, 3, 8, 8), torch.tensor([5.0]))
    patches = out.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)[0]
    assert (torch.cdist(patches, patches) + torch.eye(16)).min() > 1e-3


def test_time_and_condition_matter(case):
    net, cond = case
    x, label = inputs()
    out = net(x, label, cond)
    assert (out - net(x, label + 1, cond)).abs().amax((1, 2, 3)).min() > 1e-4
    if cond is not None:
        assert (out - net(x, label, cond.flip(0)))[::2].abs().amax((1, 2, 3)).min() > 1e-3


def test_the_null_condition(case):
    """None is -1 for classes, and a context of zeros of whatever length."""
    net, cond = case
    x, label = inputs()
    expected = net(x, label)
    if net.classes is not None:
        torch.testing.assert_close(net(x, label, torch.full((3,), -1)), expected, rtol=0, atol=0)
    if net.context_channels:
        torch.testing.assert_close(net(x, label, torch.zeros_like(cond)), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(net(x, label, torch.zeros(3, 1, 6)), expected, rtol=0, atol=0)


def test_each_sample_is_alone(case):
    net, cond = case
    x, label = inputs()
    alone = net(x[1:2], label[1:2], None if cond is None else cond[1:2])
    torch.testing.assert_close(net(x, label, cond)[1:2], alone, rtol=0, atol=1e-5)


def test_channels_last_gives_the_same(case):
    net, cond = case
    x, label = inputs()
    expected = net(x, label, cond)
    out = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), label, cond)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(patch=3), "8 x 8 pixels do not divide into patches of 3"),
        (dict(image_size=[8, 7]), "8 x 7 pixels do not divide into patches of 2"),
        (dict(image_size=[8, 8, 8]), "image_size=.* is no size"),
        (dict(width=30), "width 30 is not a multiple of 4"),
        (dict(heads=3), "32 channels do not divide into 3 heads"),
        (dict(num_classes=2, context_channels=3), "a class or a context"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiT(**TINY | change)


def test_what_it_was_not_made_for_is_refused():
    x, label = inputs()
    with pytest.raises(ValueError, match="9 x 8 pixels do not divide into patches of 2"):
        DiT(**TINY)(torch.randn(3, 3, 9, 8), label)
    with pytest.raises(ValueError, match="unconditional"):
        DiT(**TINY)(x, label, torch.tensor([1, 2, 3]))
    for wrong in (torch.tensor([1, 2, 3]), torch.randn(3, 7, 5), torch.zeros(3, 7, 6, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"\[batch, n, 6\] of floats"):
            DiT(**TINY, context_channels=6)(x, label, wrong)


def test_the_table_of_a_rectangle_is_a_cut_of_a_squares():
    square, wide, tall = (positions(rows, columns, 12).unflatten(0, (rows, columns)) for rows, columns in ((5, 5), (3, 5), (5, 2)))
    assert torch.equal(wide, square[:3]) and torch.equal(tall, square[:, :2])
    assert torch.equal(wide[:, 0, :6], wide[0, 0, :6].expand(3, 6)) and torch.equal(wide[0, :, 6:], wide[0, 0, 6:].expand(5, 6))


@pytest.mark.parametrize("size", [(8, 16), (12, 4), (4, 4), (16, 16)])
def test_a_rectangle_and_another_size(case, size):
    """A network built for 8 x 8 gives at another size what the same weights give in a network that was built for it."""
    net, cond = case
    x, label = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(3)), torch.linspace(0, 999, 3)
    settings = dict(num_classes=5 if net.classes is not None else 0, context_channels=net.context_channels)
    built = DiT(**TINY | {"image_size": list(size)}, **settings).eval()
    built.load_state_dict(net.state_dict())
    out = net(x, label, cond)
    assert out.shape == (3, 6, *size)
    torch.testing.assert_close(out, built(x, label, cond), rtol=0, atol=0)


def test_another_size_compiles():
    net, x = awake(DiT(**TINY)), torch.randn(2, 3, 8, 16)
    torch.compiler.reset()
    label = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x, label), net(x, label), rtol=0, atol=1e-6)


def test_the_digits_preset_is_small():
    told = {"in_channels": 1, "out_channels": 2, "image_size": 8, "num_classes": 10}
    net = build(composed("network=dit_digits")["network"], "network", told)
    assert 0.5e6 < sum(p.numel() for p in net.parameters()) < 1.2e6
    assert net(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, -1])).shape == (2, 2, 8, 8)
