"""The U-Net: shapes, parameter counts, conditioning, layouts, compilation, errors."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion.networks import UNet
from diffusion.networks.blocks import group_norm
from diffusion.networks.embedding import TimeEmbedding, sinusoidal

CONF = Path(__file__).parents[2] / "conf" / "network"

# What each preset is made for: what its configuration takes from the data set and the denoiser.
DATA = {
    "digits": dict(in_channels=1, out_channels=2, image_size=8, num_classes=10),
    "mnist": dict(in_channels=1, out_channels=2, image_size=28, num_classes=10),
    "ddpm_cifar10": dict(in_channels=3, out_channels=3, image_size=32, num_classes=0),
    "iddpm_cifar10": dict(in_channels=3, out_channels=6, image_size=32, num_classes=0),
    "adm_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
    "ddpmpp_cifar10": dict(in_channels=3, out_channels=3, image_size=32, num_classes=0),
    "ncsnpp_cifar10": dict(in_channels=3, out_channels=3, image_size=32, num_classes=0),
    "res_conv_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
    "res_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
    "res_res_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
    "res_res_atn_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
    "res_large_64": dict(in_channels=3, out_channels=6, image_size=64, num_classes=1000),
}


def preset(name: str) -> dict:
    """The preset as its file has it, with the interpolated keys replaced by DATA's."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=False)
    assert config.pop("_target_") == "diffusion.networks.UNet"
    return config | DATA[name]


def narrow(name: str) -> dict:
    """The preset at a quarter of its width or less, the heads narrowed with it, and small images where its levels allow."""
    config = preset(name) | {"channels": 16, "res_blocks": min(2, preset(name)["res_blocks"])}
    if name.startswith("res_"):
        config["image_size"] = 16  # three levels and attention at 16 still
    return config | ({"head_channels": 8} if config.get("head_channels") else {})


def awake(net: UNet) -> UNet:
    """Random values in place of the zero-initialised layers, so that every path reaches the output."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(config: dict, batch: int = 3):
    torch.manual_seed(1)
    size, classes = config["image_size"], config["num_classes"]
    cond = torch.arange(batch) % classes if classes else None
    return torch.randn(batch, config["in_channels"], size, size), torch.linspace(0, 999, batch), cond


@pytest.fixture
def small() -> UNet:
    config = dict(in_channels=1, out_channels=2, image_size=8, num_classes=10)
    return awake(UNet(channels=16, multipliers=(1, 2), res_blocks=1, attention=(4,), heads=4, **config))


def test_every_preset_is_tested():
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(DATA)


@pytest.mark.parametrize("name", DATA)
def test_shape_and_zero_output_at_init(name):
    config = narrow(name)
    x, label, cond = inputs(config)
    out = UNet(**config)(x, label, cond)
    assert out.shape == (3, config["out_channels"], *x.shape[2:])
    assert not out.any()


@pytest.mark.parametrize("name", DATA)
def test_every_parameter_is_used(name):
    config = narrow(name) | {"dropout": 0.0}
    net = awake(UNet(**config))
    net(*inputs(config)).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "name, count",
    [
        # Ho et al. 2020 say 35.7 M; this is the count of google/ddpm-cifar10-32 (see the parity test).
        ("ddpm_cifar10", 35_746_307),
        # Nichol & Dhariwal 2021: the checkpoint is "50M"; counted by hand from their description, layer by layer.
        ("iddpm_cifar10", 52_546_438),
        # Dhariwal & Nichol 2021: 296 M; 295,904,454 counted likewise, and the null class's 4 * 192.
        ("adm_64", 295_904_454 + 768),
        # Lin et al. 2025 (2509.15591) state this count of rectified flow's network for CIFAR-10, which is Song et al.'s DDPM++ cont.
        ("ddpmpp_cifar10", 61_804_419),
        # The same; its embedding has 128 features more, and the pyramid three convolutions: 3 to 128, 128 to 256, 256 to 256 channels.
        ("ncsnpp_cifar10", 61_804_419 + 128 * 512 + (3 * 9 + 1) * 128 + (128 * 9 + 1) * 256 + (256 * 9 + 1) * 256),
    ],
)
def test_parameter_counts_of_the_papers(name, count):
    if name == "adm_64":
        assert DATA[name]["num_classes"] == 1000
    with torch.device("meta"):
        net = UNet(**preset(name))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("name", [name for name in DATA if name not in ("digits", "mnist")])
def test_a_preset_has_the_parameters_that_its_file_says(name):
    said = re.search(r"([\d.]+) M\s+(?:# )?parameters", (CONF / f"{name}.yaml").read_text())[1]
    with torch.device("meta"):
        net = UNet(**preset(name))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(float(said), abs=0.5 * 10 ** -len(said.partition(".")[2]))


def test_the_digits_preset_is_small():
    with torch.device("meta"):
        net = UNet(**preset("digits"))
    assert 0.5e6 < sum(p.numel() for p in net.parameters()) < 1e6


def test_time_and_class_matter(small):
    x, label, _ = inputs(dict(image_size=8, in_channels=1, num_classes=10))
    zero, one = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    assert (small(x, label, zero) - small(x, label, one)).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (small(x, label, zero) - small(x, label + 1, zero)).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert (small(x, label, zero) - small(x, label)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_each_sample_is_alone(small):
    """A sample's output does not depend on the others of its batch, nor on their classes."""
    x, label, _ = inputs(dict(image_size=8, in_channels=1, num_classes=10))
    mixed = small(x, label, torch.tensor([3, -1, 5]))
    torch.testing.assert_close(mixed[1:2], small(x[1:2], label[1:2], None), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[2:], small(x[2:], label[2:], torch.tensor([5])), rtol=0, atol=1e-5)


def test_null_is_minus_one_is_none_is_the_last_row(small):
    x, label, _ = inputs(dict(image_size=8, in_channels=1, num_classes=10))
    null = small(x, label, None)
    torch.testing.assert_close(small(x, label, torch.full((3,), -1)), null, rtol=0, atol=0)
    assert small.classes.weight.shape[0] == 11
    with torch.no_grad():
        small.classes.weight[-1] += 1
    assert (small(x, label, None) - null).abs().max() > 1e-3


@pytest.mark.parametrize("name", DATA)
def test_channels_last_gives_the_same(name):
    config = narrow(name)
    net, (x, label, cond) = awake(UNet(**config)).double(), inputs(config)
    with torch.no_grad():
        expected = net(x.double(), label, cond)
        out = net.to(memory_format=torch.channels_last)(x.double().to(memory_format=torch.channels_last), label, cond)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


def test_channels_last_is_kept_by_every_block():
    """One block that returned the other layout would cost a copy in each convolution after it."""
    config = narrow("adm_64")
    net = awake(UNet(**config)).to(memory_format=torch.channels_last)
    layouts = []
    for block in [*net.down, net.middle, *net.up, net.out]:
        block.register_forward_hook(lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last)))
    x, label, cond = inputs(config)
    net(x.to(memory_format=torch.channels_last), label, cond)
    assert layouts and all(layouts)


@pytest.mark.parametrize("name", ["ddpm_cifar10", "iddpm_cifar10", "adm_64"])
@pytest.mark.parametrize("given", ["classes", "none"])
def test_compiles_in_one_graph(name, given):
    config = narrow(name) | {"num_classes": 5 if given == "classes" else 0, "res_blocks": 1}
    net, (x, label, cond) = awake(UNet(**config)), inputs(config)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, label, cond), net(x, label, cond), rtol=0, atol=0)


def test_the_embedding_tells_all_timesteps_apart_under_autocast():
    """As bfloat16 numbers only 507 of the 1000 labels differ."""
    labels = torch.arange(1000.0)
    assert len(labels.bfloat16().unique()) == 507
    with torch.autocast("cpu", torch.bfloat16):
        embedding = sinusoidal(labels, 32)
        vectors = TimeEmbedding(32, 128)(labels)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, sinusoidal(labels.double(), 32).float(), rtol=0, atol=1e-4)
    assert len(embedding.unique(dim=0)) == 1000
    assert len(vectors.unique(dim=0)) == 1000


def test_the_embedding_is_ddpms():
    """sin then cos, frequencies from 1 down to exactly 1/10000; fractions lie between whole steps."""
    label = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    embedding = sinusoidal(label, 8)
    frequencies = torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4], dtype=torch.float64)
    torch.testing.assert_close(embedding[:, :4], (label[:, None] * frequencies).sin())
    torch.testing.assert_close(embedding[:, 4:], (label[:, None] * frequencies).cos())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_another_precision(small, dtype):
    net = small.to(dtype)
    x, label, cond = inputs(dict(image_size=8, in_channels=1, num_classes=10))
    assert net(x.to(dtype), label, cond).dtype == dtype


@pytest.mark.parametrize("channels, groups", [(128, 32), (192, 32), (1024, 32), (48, 12), (32, 8), (6, 1), (50, 10)])
def test_groups_have_four_channels_or_more(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image_size=28), r"image_size 28 is not divisible by 8, which 4 levels"),
        (dict(image_size=[32, 28]), r"image_size \[32, 28\] is not divisible by 8, which 4 levels"),
        (dict(image_size=[32, 64], attention=(64,)), r"attention at \[64\] is never reached; .* \[32, 16, 8, 4\]"),
        (dict(image_size=0), "image_size=0 of UNet must be between 1 and"),
        (dict(attention=(16, 7)), r"attention at \[7\] is never reached; .* \[32, 16, 8, 4\]"),
        (dict(heads=3), r"256 channels do not divide into 3 heads"),
        (dict(head_channels=48), r"256 channels do not divide into heads of 48 channels"),
        (dict(channels=33), r"channels must be even and at least 4.*33"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        UNet(**change)


RECTANGLE = dict(in_channels=2, out_channels=3, channels=16, multipliers=(1, 2, 2), res_blocks=1, attention=(4,))
RESAMPLING = {
    "convolutions": dict(),
    "blocks": dict(resample_in_resblock=True),
    "filters": dict(resample_in_resblock=True, fir=True, input_pyramid=True, skip_rescale=True),
}


@pytest.mark.parametrize("resampling", RESAMPLING)
@pytest.mark.parametrize("size", [(8, 16), (16, 8), (8, 8), (24, 4)])
def test_a_rectangle_and_another_size(size, resampling):
    """A network built for 8 x 16 takes any size that its two halvings divide; attention is counted along the shorter side."""
    net = awake(UNet(image_size=[8, 16], **RECTANGLE, **RESAMPLING[resampling]))
    square = UNet(image_size=8, **RECTANGLE, **RESAMPLING[resampling]).eval()
    square.load_state_dict(net.state_dict())  # which have attention at the same levels, or it would not load
    x, label = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 700.0])
    out = net(x, label)
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, square(x, label), rtol=0, atol=0)


def test_turning_the_image_and_the_filters_turns_the_output():
    """Height and width are treated alike: no level mixes them up. Its convolutions pad both sides the same when resampling in blocks."""
    net = awake(UNet(image_size=[8, 16], **RECTANGLE, resample_in_resblock=True)).double()
    x, label = torch.randn(2, 2, 8, 16, dtype=torch.float64), torch.tensor([3.0, 700.0])
    out = net(x, label)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = layer.weight.data.mT.contiguous()
    torch.testing.assert_close(net(x.mT, label), out.mT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 18), (6, 16), (7, 7)])
def test_a_size_that_the_halvings_do_not_divide_is_refused(size):
    net = UNet(image_size=[8, 16], **RECTANGLE)
    with pytest.raises(ValueError, match=rf"multiples of 4, and these are {size[0]} x {size[1]}: choose another height and width"):
        net(torch.randn(1, 2, *size), torch.zeros(1))


def test_classes_given_to_an_unconditional_network_are_refused():
    net = UNet(in_channels=1, out_channels=1, image_size=8, channels=8, multipliers=(1,), attention=(), res_blocks=1)
    with pytest.raises(ValueError, match="unconditional"):
        net(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("size", "multipliers", "attention"),
    [((28, 28), [1, 2, 2], [7]), ((14, 14), [2, 2], [7]), ((7, 7), [2], [7]), ((4, 4), [1, 2, 2], [4]), ((4, 12), [1, 2, 2], [4])],
)
def test_a_network_of_pictures_becomes_one_of_their_latents(size, multipliers, attention):
    """Without the levels whose halvings are too many, and with attention at a level that there is: the preset of 28 x 28 pictures on
    latents of each factor."""
    said = {"channels": 8, "multipliers": [1, 2, 2], "attention": [7], "res_blocks": 1}
    found = UNet.fitted(said, size)
    assert found == {"multipliers": multipliers, "attention": attention}
    network = UNet(in_channels=4, out_channels=4, image_size=size, **said | found)
    assert network(torch.randn(1, 4, *size), torch.zeros(1)).shape == (1, 4, *size)
    assert UNet.fitted({}, (8, 8)) == {"multipliers": [1, 2, 2, 2], "attention": [8]}  # what is not said is the class's own
