"""The blocks of the U-Net one by one, against their formulas, and the lists that they are composed in."""

import math
from itertools import permutations

import pytest
import torch
from composing import composed
from torch.nn.functional import layer_norm, softmax

from diffusion.denoiser import Denoiser
from diffusion.guidance import ClassifierFree
from diffusion.networks import Encoder, UNet
from diffusion.networks.attention import ChannelAttention, ClassAttention, CrossAttention, SelfAttention
from diffusion.networks.blocks import ConvNeXt, ResidualBlock, silu
from diffusion.networks.embedding import FourierTimeEmbedding, Given
from diffusion.networks.resampling import Smooth, SmoothDownsample
from diffusion.parameterization import Epsilon
from diffusion.schedules import Cosine

TINY = dict(in_channels=1, out_channels=2, image_size=8, channels=8, multipliers=(1, 2), res_blocks=1, attention=(4,), heads=2)
SONG = dict(resample_in_resblock=True, fir=True, fourier_scale=0.1, skip_rescale=True, project_skip=True)


def awake(module):
    """Random values in place of the zero-initialised layers."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().double()


def given(batch: int = 2, embedding: int = 6, context: int = 5) -> Given:
    torch.manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    return Given(draw(batch, embedding), draw(batch, embedding), draw(batch, 3, context))


def image(channels: int = 8, size: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_convnext_is_its_formula():
    """With group_norm(4 channels) as one group its norm is LayerNorm over the whole image; all else pixel by pixel."""
    block, x, g = awake(ConvNeXt(4, 6, 6)), image(4), given()
    h = block.depthwise(x)
    scale, shift = block.condition.project(g.embedding)[:, :, None, None].chunk(2, dim=1)
    norm = block.condition.norm
    h = layer_norm(h, h.shape[1:], eps=1e-6) * norm.weight[:, None, None] + norm.bias[:, None, None]
    h = h * (1 + scale) + shift
    pixel = h[1, :, 2, 3]
    hidden = block.expand.weight[:, :, 0, 0] @ pixel + block.expand.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = block.out.weight[:, :, 0, 0] @ hidden + block.out.bias + block.skip.weight[:, :, 0, 0] @ x[1, :, 2, 3] + block.skip.bias
    torch.testing.assert_close(block(x, g)[1, :, 2, 3], expected)


def test_the_convnext_convolution_is_depthwise():
    block = ConvNeXt(8, 8, 6)
    assert block.depthwise.weight.shape == (8, 1, 7, 7) and block.expand.out_channels == 32


def test_class_attention_is_its_formula():
    """Channel i of the output is a mean of all channels, weighted by softmax_j(q_i k_j)."""
    block, x, g = awake(ClassAttention(8, 6)), image(), given()
    q, k = (part[0] for part in block.qk(g.classes).chunk(2, dim=-1))
    h = block.norm(x)[0]
    mixed = torch.stack([sum(weight * h[j] for j, weight in enumerate(softmax(q[i] * k, dim=0))) for i in range(8)])
    expected = x[0] + torch.einsum("oc,chw->ohw", block.out.weight, mixed) + block.out.bias[:, None, None]
    torch.testing.assert_close(block(x, g)[0], expected)


def test_class_attention_sees_the_class_alone():
    block, x, g = awake(ClassAttention(8, 6)), image(), given()
    out = block(x, g)
    torch.testing.assert_close(block(x, g._replace(embedding=g.embedding + 1)), out, rtol=0, atol=0)
    assert (block(x, g._replace(classes=g.classes + 1)) - out).abs().max() > 1e-3


def test_channel_attention_is_its_formula():
    block, x = awake(ChannelAttention(8)), image()
    w = block.conv.weight[0, 0]
    mean = torch.nn.functional.pad(x.mean((2, 3)), (1, 1))
    gate = torch.stack([(mean[:, i : i + 3] * w).sum(1) for i in range(8)], dim=1).sigmoid()
    torch.testing.assert_close(block(x, given()), x * gate[:, :, None, None])


@pytest.mark.parametrize("channels, length", [(8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5)])
def test_the_length_of_channel_attention(channels, length):
    """Wang et al.'s eq. 12 with gamma = 2, b = 1: |log2(c) / 2 + 1 / 2| cut to an integer, and made odd by adding one."""
    assert ChannelAttention(channels).conv.kernel_size == (length,)


def test_cross_attention_is_torchs():
    block, x, g = awake(CrossAttention(8, 5, heads=2)), image(), given()
    torchs = torch.nn.MultiheadAttention(8, 2, bias=True, kdim=5, vdim=5, batch_first=True).double()
    look = block.look
    torchs.q_proj_weight.data, (torchs.k_proj_weight.data, torchs.v_proj_weight.data) = look.q.weight.data, look.kv.weight.data.chunk(2)
    torchs.in_proj_bias.data = torch.cat([look.q.bias.data, torch.zeros(16, dtype=torch.float64)])
    torchs.out_proj.load_state_dict(look.out.state_dict())
    expected = torchs(block.norm(x).flatten(2).mT, g.context, g.context)[0]
    torch.testing.assert_close(block(x, g), x + expected.mT.unflatten(2, (4, 4)))


def test_a_null_context_of_any_length_is_the_same():
    block, x, g = awake(CrossAttention(8, 5)), image(), given()
    one, many = (block(x, g._replace(context=torch.zeros(2, n, 5, dtype=torch.float64))) for n in (1, 9))
    torch.testing.assert_close(one, many)
    assert (block(x, g) - one).abs().max() > 1e-3


@pytest.mark.parametrize("make", [ResidualBlock, ConvNeXt])
def test_rescaling_divides_the_sum_by_the_root_of_two(make):
    plain, rescaled = (awake(make(8, 16, 6, rescale=rescale)) for rescale in (False, True))
    rescaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(rescaled(image(), given()), plain(image(), given()) / math.sqrt(2))


def test_rescaling_reaches_every_block():
    """At the start every branch is 0, so each block that joins its input divides it by sqrt(2)."""
    words = ("res", "conv", "atn", "clsAtn", "ctxAtn")
    net = UNet(**TINY, block=words, middle=words, context_channels=5, skip_rescale=True).double()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(net.middle(x, given(embedding=32)), x * 2**-2.5)


@pytest.mark.parametrize(
    "make", [lambda: SelfAttention(8), lambda: ConvNeXt(8, 8, 6), lambda: ClassAttention(8, 6), lambda: CrossAttention(8, 5)]
)
def test_branches_start_at_zero(make):
    assert torch.equal(make().double()(image(), given()), image())


def impulse(size: int, at: int) -> torch.Tensor:
    x = torch.zeros(1, 2, size, size, dtype=torch.float64)
    x[0, 1, at, at] = 1
    return x


def test_smoothing_down_is_the_filter_at_every_other_pixel():
    """out[i] = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8 in each direction, zeros outside."""
    x = image(3, 8)
    matrix = torch.zeros(4, 8, dtype=torch.float64)
    for i in range(4):
        for tap, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
            if 0 <= tap < 8:
                matrix[i, tap] = weight / 8
    torch.testing.assert_close(Smooth(up=False).double()(x), matrix @ x @ matrix.T)
    torch.testing.assert_close(Smooth(up=True).double()(x[:, :, :4, :4]), 4 * matrix.T @ x[:, :, :4, :4] @ matrix)


def test_smoothing_keeps_a_constant_inside():
    x = torch.full((1, 2, 8, 8), 3.0)
    assert (Smooth(up=False)(x)[..., 1:-1, 1:-1] == 3).all() and (Smooth(up=True)(x)[..., 1:-1, 1:-1] == 3).all()
    assert Smooth(up=True).state_dict() == {}


def test_the_pyramid_s_step_is_the_filter_and_a_convolution():
    """With a convolution that takes its middle pixel alone it is the filter's own halving."""
    step, x = SmoothDownsample(2, 2).double(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        step.conv.weight.zero_()[range(2), range(2), 1, 1] = 1
        torch.testing.assert_close(step(x) - step.conv.bias[:, None, None], Smooth(up=False).double()(x))


def test_the_pyramid_brings_the_image_to_each_level():
    """h <- (h + f(image))/sqrt(2) after the halving, with image x_t; the next halving's image is that h."""
    net = awake(UNet(**TINY | dict(multipliers=(1, 2, 2)), **SONG, input_pyramid=True))
    x, label = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3.0, 500.0])
    shrunk, seen = [], []
    for i in (1, 3):  # a layer and a halving on each level
        net.down[i].register_forward_hook(lambda *call: shrunk.append(call[-1]))
        net.down[i + 1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(x, label)
    torch.testing.assert_close(seen[0], (shrunk[0] + net.pyramid[0](x)) / 2**0.5)
    torch.testing.assert_close(seen[1], (shrunk[1] + net.pyramid[1](seen[0])) / 2**0.5)


def test_attention_once_a_level_on_the_way_up():
    """Of the way up's two layers at 4x4 the last attends; the way down attends as ever."""
    words = [[type(block).__name__ for block in chain] for chain in UNet(**TINY, attention_once=True).up[:2]]
    assert words == [["ResidualBlock"], ["ResidualBlock", "SelfAttention", "Upsample"]]
    assert sum(isinstance(m, SelfAttention) for m in UNet(**TINY, attention_once=True).down.modules()) == 1


def test_fourier_features_are_gaussian_and_survive_half_precision():
    embed = FourierTimeEmbedding(4096, 8, scale=0.1364)
    label = torch.tensor([0.0, 1.0, 998.5])
    before = embed.features(label)
    w = torch.atan2(*before[1].chunk(2)) / (2 * math.pi)  # |w| stays below 1/2 cycle
    assert abs(w.std() / 0.1364 - 1) < 4 / math.sqrt(2 * 4096) and abs(w.mean()) < 4 * 0.1364 / 64  # four standard errors
    torch.testing.assert_close(before[0], torch.cat([torch.zeros(4096), torch.ones(4096)]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed.to(torch.bfloat16).features(label), before)
    other = FourierTimeEmbedding(4096, 8, scale=0.1364)
    other.load_state_dict(embed.state_dict())
    assert torch.equal(other.features(label), before)


# The U-Net of lists


@pytest.mark.parametrize(
    "network, channels, block",
    [
        ("res_conv_64", 128, "res conv clsAtn chnAtn"),
        ("res_64", 128, "res clsAtn chnAtn"),
        ("res_res_64", 128, "res res clsAtn chnAtn"),
        ("res_res_atn_64", 128, "res res clsAtn atn chnAtn"),
        ("res_large_64", 192, "res clsAtn chnAtn"),
    ],
)
def test_the_five_models_of_document_002(network, channels, block):
    """Its list of models and its table of constants: T, lambda, p_uncond, learning rate, steps, batch, embedding, attention resolution."""
    config = composed("experiment=res_64", f"network={network}")
    assert config["network"]["channels"] == channels and config["network"]["block"] == block.split()
    assert config["network"]["embedding_channels"] == 512 and len(config["network"]["multipliers"]) == 3 + 1  # halvings
    assert config["network"]["attention"] == ([16, 8] if "atn" in block.split() else [])
    assert config["schedule"]["_target_"].endswith("Cosine") and config["schedule"]["num_timesteps"] == 1000
    assert config["objective"]["_target_"].endswith("Hybrid") and config["objective"]["weight"] == 0.001
    assert (config["p_uncond"], config["optimizer"]["lr"]) == (0.2, 3e-4)
    assert (config["steps"], config["batch_size"], config["dataset"]["image_size"]) == (600_000, 1024, 64)


@pytest.mark.parametrize("block", [("res", *rest) for rest in permutations(["conv", "clsAtn", "chnAtn"])] + [("conv", "atn"), ("conv",)])
def test_any_order_composes(block):
    net = awake(UNet(**TINY, num_classes=5, block=block, middle=block)).float()
    x, label, cond = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0]), torch.tensor([1, -1])
    out = net(x, label, cond)
    out.square().mean().backward()
    assert out.shape == (2, 2, 8, 8)
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_stands_where_it_is_asked_for():
    net = UNet(**TINY, num_classes=5, block=("res", "clsAtn", "atn", "chnAtn"))
    names = [[type(block).__name__ for block in layer] for layer in net.down if hasattr(layer, "__len__")]
    assert names == [
        ["ResidualBlock", "ClassAttention", "ChannelAttention"],
        ["ResidualBlock", "ClassAttention", "SelfAttention", "ChannelAttention"],
    ]


def test_class_attention_without_classes_looks_at_the_time():
    net = awake(UNet(**TINY, block=("res", "clsAtn"))).float()
    x = torch.randn(2, 1, 8, 8)
    assert (net(x, torch.tensor([1.0, 2.0])) - net(x, torch.tensor([5.0, 6.0]))).abs().max() > 1e-4


@pytest.fixture
def reader():
    """A U-Net that looks at contexts of width 5."""
    words = ("res", "atn", "ctxAtn")
    return awake(UNet(**TINY, context_channels=5, block=words, middle=(*words, "res"))).float()


def test_the_context_matters_and_none_is_null(reader):
    x, label, context = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 7, 5)
    out, null = reader(x, label, context), reader(x, label)
    torch.testing.assert_close(reader(x, label, torch.zeros(2, 7, 5)), null, rtol=0, atol=1e-6)
    assert (out - null).abs().amax((1, 2, 3)).min() > 1e-3
    mixed = reader(x, label, torch.stack([context[0], torch.zeros(7, 5)]))
    torch.testing.assert_close(mixed, torch.stack([out[0], null[1]]), rtol=0, atol=1e-6)


def test_a_context_is_guided_by_its_null(reader):
    """Classifier-free guidance with a context: eps(0) + s (eps(c) - eps(0)), whatever is asked of the null."""
    denoiser = Denoiser(reader, Cosine(), Epsilon(), learned_variance=True)
    x, t, context = torch.randn(2, 1, 8, 8), torch.tensor(0.5), torch.randn(2, 7, 5)
    free, bound = denoiser(x, t).eps, denoiser(x, t, context).eps
    torch.testing.assert_close(ClassifierFree(denoiser, 3.0)(x, t, context).eps, free + 3 * (bound - free), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [dict(), SONG | dict(attention_once=True, input_pyramid=True)], ids=["plain", "ncsnpp"])
def test_all_blocks_compile_in_one_graph_and_keep_the_layout(options):
    words = ("res", "conv", "atn", "ctxAtn", "clsAtn", "chnAtn")
    net = awake(UNet(**TINY, context_channels=5, block=words, middle=words, **options)).float().to(memory_format=torch.channels_last)
    x = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    args = x, torch.tensor([3.0, 500.0]), torch.randn(2, 7, 5)
    layouts = []
    hooks = [
        block.register_forward_hook(lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last)))
        for layer in [*net.down, net.middle, *net.up]
        for block in (layer if hasattr(layer, "__len__") else [layer])
    ]
    net(*args)
    assert layouts and all(layouts)
    for hook in hooks:
        hook.remove()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*args), net(*args), rtol=0, atol=0)


def test_a_context_network_makes_a_classifier_too(reader):
    assert Encoder(reader, 3)(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 5.0])).shape == (2, 3)


def test_a_classifier_of_something_else_is_refused():
    with pytest.raises(ValueError, match="U-Net's way down, and a Linear has none"):
        Encoder(torch.nn.Linear(1, 1), 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(block=("res", "attn")), r"block=\['res', 'attn'\] should be a list of res, conv, atn"),
        (dict(middle=()), r"middle=\[\] should be a list of"),
        (dict(block=("atn", "res")), "begins with atn, which cannot change the width: begin with res or conv"),
        (dict(block=("res", "ctxAtn")), "ctxAtn and context_channels=0 go together"),
        (dict(context_channels=5, block=("res",), middle=("res",), attention=()), "ctxAtn and context_channels=5 go together"),
        (dict(context_channels=5, num_classes=3), "a class or a context"),
        (dict(fir=True), "resample_in_resblock=true"),
    ],
)
def test_lists_that_make_no_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(**TINY | change)


@pytest.mark.parametrize("words", [{}, {"scale_shift": False}, {"resample_in_resblock": False}, SONG | {"input_pyramid": True}])
def test_without_gradients_a_network_says_the_same_and_changes_nothing_it_is_given(words):
    """`silu` takes the memory of what it is given, which is nobody else's."""
    network, x, label = awake(UNet(**TINY, **words)), image(1, 8), torch.tensor([3.0, 700.0], dtype=torch.float64)
    before = x.clone()
    with_gradients = network(x, label)
    with torch.no_grad():
        first, second = network(x, label), network(x, label)
    assert torch.equal(x, before) and torch.equal(first, with_gradients) and torch.equal(second, with_gradients)


def test_silu_takes_no_new_memory_where_no_gradient_asks():
    x = image()
    expected = x * torch.sigmoid(x)
    assert silu(x.requires_grad_()).data_ptr() != x.data_ptr()
    with torch.no_grad():
        y = silu(x)
    assert y.data_ptr() == x.data_ptr()
    torch.testing.assert_close(y, expected)
