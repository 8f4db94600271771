"""Files in the layouts of improved- and guided-diffusion, EDM and DiT become networks of ours that compute the same.

No published file is at hand. What a file is compared with is each network written again from reading its authors' code, as functions of a
state dict (`published_openai`, `published_edm`, `published_dit`), and, at full size, the names and shapes of the published networks."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from documents import ROOT, commands
from published_dit import PublishedDiT
from published_edm import EDMNet
from published_openai import OpenAI, numbers

from diffusion.convert import write_as
from diffusion.foreign.layouts import Weights, found_among
from diffusion.foreign.published import LAYOUTS, converted
from diffusion.support.build import build
from diffusion.support.errors import UserError


def words(line: str) -> dict[str, str]:
    """The flags of a command: "--a 1 --b x" -> {"a": "1", "b": "x"}."""
    parts = line.split()
    return {flag.removeprefix("--"): value for flag, value in zip(parts[::2], parts[1::2], strict=True)}


GUIDED = "--image_size 16 --channel_mult 1,2,2 --attention_resolutions 8,4 --learn_sigma True"
SMALL = {
    "guided, new order, blocks that resample": (
        OpenAI(32, (1, 2, 2), 1, (2, 4), num_head_channels=16, num_classes=7, resblock_updown=True, heads_first=False),
        f"{GUIDED} --num_channels 32 --num_head_channels 16 --class_cond True --resblock_updown True --use_new_attention_order True",
    ),
    "guided, half a width": (
        OpenAI(64, (0.5, 1, 2), 1, (2,), out_channels=3, resblock_updown=True),
        "--image_size 16 --channel_mult 0.5,1,2 --attention_resolutions 8 --num_heads 4",
    ),
    "improved": (
        OpenAI(32, (1, 2, 2, 2), 3, (2, 4)),
        "--image_size 32 --num_res_blocks 3 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True",
    ),
    "improved, no scale and shift": (
        OpenAI(32, (1, 1, 2), 2, (4,), num_heads=1, num_classes=5, use_scale_shift_norm=False),
        "--image_size 16 --channel_mult 1,1,2 --num_heads 1 --use_scale_shift_norm False --class_cond True",
    ),
    "edm, ddpmpp": (EDMNet(16, 32, (2, 2, 2), 2, (8,), label_dim=5, augment_dim=9), "--arch ddpmpp --cbase 32 --cres 2,2,2 --cond 1"),
    "edm, ncsnpp": (EDMNet(16, 32, (1, 2, 2), 2, (8,), label_dim=5, augment_dim=9, fir=True), "--arch ncsnpp"),
    "edm, adm": (EDMNet(16, 64, (1, 2, 2), 1, (8, 4), label_dim=5, song=False), "--arch adm"),
    "dit": (PublishedDiT(8, 2, 3, 48, 3, 4, 5), "--num_heads 4 --num-classes 5 --image-size 8"),
    "dit, no variance": (PublishedDiT(16, 4, 1, 64, 2, 4, 5, learn_sigma=False), "--num-heads 4 --image_size 16"),
}


def weights_for(reference, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Random weights of a network of theirs; what they do not train is as they have it."""
    found = numbers(reference.shapes(), dtype=dtype)
    for name in found:
        if name.endswith("resample_filter"):
            found[name] = reference.taps.to(dtype)
    return found | ({"pos_embed": reference.positions(dtype)} if "pos_embed" in found else {})


def told(reference, classes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """What a network of theirs is told of classes: numbers, or vectors of one 1."""
    if isinstance(reference, EDMNet):
        return torch.eye(reference.label_dim, dtype=dtype)[classes]
    return classes if reference.num_classes else None


@pytest.fixture
def read(tmp_path):
    """Writes weights to a file, as torch does, and reads it with flags."""

    def reading(weights, line: str, name: str = "theirs.pt"):
        torch.save(weights, tmp_path / name)
        return converted(tmp_path / name, words(line))

    return reading


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_network_computes_what_theirs_does(name, read):
    """To 1e-5 of the largest output in float32, and in float64 to 1e-10, of weights that float32 holds exactly; but SongUNet's classes,
    each the sum of a product and a bias that is rounded to float32."""
    reference, line = SMALL[name]
    weights = weights_for(reference)
    model = read({f"model.{key}": value for key, value in weights.items()} if name == "edm, ddpmpp" else weights, line).model()
    size, channels = model.codec.shape[1], model.codec.shape[0]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
    label, classes = (
        torch.tensor([0.0, 1.3, 2.5] if isinstance(reference, EDMNet) else [0.0, 417.0, 999.0]).double(),
        torch.tensor([0, 2, 4]),
    )
    cond = classes if model.conditions.given else None
    rounded = isinstance(reference, EDMNet) and reference.song
    for dtype, near in ((torch.float32, 1e-5), (torch.float64, 2e-7 if rounded else 1e-10)):
        theirs = {key: value.to(dtype) for key, value in weights.items()}
        scaled = label * model.config["network"].get("details", {}).get("label_scale", 1.0)
        expected = reference(theirs, x.to(dtype), scaled.to(dtype), told(reference, classes, dtype))
        found = model.denoiser.network.to(dtype)(x.to(dtype), label.to(dtype), cond)
        assert 0.3 < expected.std() < 3
        torch.testing.assert_close(found, expected, rtol=0, atol=near * expected.abs().max().item())


@torch.no_grad()
def test_a_rescaled_label_and_a_learned_variance(read):
    """Step i of 4000 is told as i / 4, the first half of the output is eps, and the second the variance's fraction (IDDPM eq. 15)."""
    reference, line = SMALL["improved"]
    weights = weights_for(reference)
    denoiser = read(weights, line).model().denoiser
    x, i = torch.randn(2, 3, 32, 32), torch.tensor([7, 3999])
    eps, fraction = reference(weights, x, i / 4).chunk(2, 1)
    estimate = denoiser(x, (i + 1).double() / 4000)
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-5)
    torch.testing.assert_close(estimate.frac, (fraction + 1) / 2, rtol=0, atol=1e-5)
    assert denoiser.schedule.num_timesteps == 4000 and type(denoiser.schedule).__name__ == "Cosine"


def vp_time(sigma: float) -> float:
    """VPPrecond's t of a noise level, beta_d 19.9 and beta_min 0.1."""
    return (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9


def iddpm_levels() -> list[float]:
    """iDDPMPrecond's u: noise levels of 1000 steps from the largest, the last is 0."""
    level, found = 0.0, [0.0]
    for j in range(1000, 0, -1):
        after, here = (math.sin(0.5 * math.pi * k / 1000 / 1.008) ** 2 for k in (j - 1, j))
        level = math.sqrt((level**2 + 1) / max(after / here, 0.001) - 1)
        found.append(level)
    return found[::-1]


def denoised(precond: str, net, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """D(x; sigma) as EDM's code has it, x = x_0 + sigma n; net(x, c_noise) is its network."""
    scaled = x / math.sqrt(sigma**2 + 1)
    if precond == "edm":
        total = sigma**2 + 0.25
        return 0.25 / total * x + sigma * 0.5 / math.sqrt(total) * net(x / math.sqrt(total), math.log(sigma) / 4)
    if precond == "vp":
        return x - sigma * net(scaled, 999 * vp_time(sigma))
    index = iddpm_levels().index(sigma)
    return x - sigma * net(scaled, 999.0 - index)[:, :3]


@torch.no_grad()
@pytest.mark.parametrize("precond", ["edm", "vp", "iddpm"])
def test_the_preconditioning_is_edm_s(precond, read):
    """x_0 at noise levels from small to large, in float64, to what float32 leaves of the label."""
    song = precond != "iddpm"
    reference = EDMNet(16, 64 if not song else 32, (1, 2), 1, (8,), song=song, out_channels=3 if song else 6)
    weights = weights_for(reference)
    file = weights if song else {**{f"model.{name}": value for name, value in weights.items()}, "u": torch.zeros(1001)}
    denoiser = read(file, f"--precond {precond}").model().denoiser.double()
    x0, noise = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = {name: value.double() for name, value in weights.items()}

    def net(x: torch.Tensor, label: float) -> torch.Tensor:
        return reference(theirs, x, torch.full((len(x),), label, dtype=torch.float64))

    for sigma in [iddpm_levels()[j] for j in (1, 400, 990)] if precond == "iddpm" else (0.01, 0.5, 20.0):
        t = denoiser.schedule.time(torch.tensor(-2 * math.log(sigma), dtype=torch.float64))
        alpha, there = denoiser.schedule(t)
        assert float(there / alpha) == pytest.approx(sigma, rel=1e-9)
        x = x0 + sigma * noise
        found = denoiser(alpha * x, t).x0
        torch.testing.assert_close(found, denoised(precond, net, x, sigma), rtol=0, atol=2e-5 * max(1.0, sigma))


def test_no_class_is_what_edm_computes_without_one(read):
    """Their code gives zeros where no class is said: DDPM++ is then told `map_label`'s bias, and ADM nothing."""
    for name in ("edm, ddpmpp", "edm, adm"):
        reference, line = SMALL[name]
        weights = weights_for(reference)
        network = read(weights, f"{line} --label_dropout 0.1").model().denoiser.network
        x, label = torch.randn(2, 3, 16, 16), torch.tensor([0.3, -1.0])
        expected = reference(weights, x, label, torch.zeros(2, 5))
        with torch.no_grad():
            torch.testing.assert_close(network(x, label, torch.tensor([-1, -1])), expected, rtol=0, atol=1e-5)


MODEL = "--use_scale_shift_norm True --learn_sigma True"
ADM = f"--attention_resolutions 32,16,8 --diffusion_steps 1000 --num_res_blocks 2 --resblock_updown True --use_fp16 True {MODEL}"
# The published networks, by the commands of the authors' READMEs, and their parameters in millions as the papers or READMEs state them.
OPENAI_FILES = {
    "cifar10_uncond_50M_500K": (
        OpenAI(128, (1, 2, 2, 2), 3, (2, 4)),
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 --diffusion_steps 4000 "
        "--noise_schedule cosine --rescale_timesteps True",
        52.5,
    ),
    "imagenet64_cond_270M_250K": (
        OpenAI(192, (1, 2, 3, 4), 3, (4, 8), num_classes=1000),
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True --diffusion_steps 4000 "
        "--noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False",
        270,
    ),
    "lsun_uncond_100M_1200K_bs128": (
        OpenAI(128, (1, 1, 2, 2, 4, 4), 2, (16,), num_heads=1, use_scale_shift_norm=False),
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True --use_scale_shift_norm False "
        "--attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear --rescale_timesteps False",
        114,
    ),
    "64x64_diffusion": (
        OpenAI(192, (1, 2, 3, 4), 3, (2, 4, 8), num_head_channels=64, num_classes=1000, resblock_updown=True, heads_first=False),
        f"{ADM} --class_cond True --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 --num_head_channels 64 "
        "--num_res_blocks 3 --use_new_attention_order True",
        296,
    ),
    "128x128_diffusion": (
        OpenAI(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), num_classes=1000, resblock_updown=True),
        f"{ADM} --class_cond True --image_size 128 --noise_schedule linear --num_channels 256 --num_heads 4",
        422,
    ),
    "256x256_diffusion": (
        OpenAI(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_head_channels=64, num_classes=1000, resblock_updown=True),
        f"{ADM} --class_cond True --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64",
        554,
    ),
    "256x256_diffusion_uncond": (
        OpenAI(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_head_channels=64, resblock_updown=True),
        f"{ADM} --class_cond False --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64",
        553,
    ),
    "512x512_diffusion": (
        OpenAI(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), num_head_channels=64, num_classes=1000, resblock_updown=True),
        f"{ADM} --class_cond True --image_size 512 --noise_schedule linear --num_channels 256 --num_head_channels 64 --use_fp16 False",
        559,
    ),
}
EDM_FILES = {
    "edm-cifar10-32x32-cond-vp": (EDMNet(32, 128, (2, 2, 2), 4, (16,), label_dim=10, augment_dim=9), "--arch ddpmpp --cond 1", 56),
    "edm-cifar10-32x32-uncond-ve": (EDMNet(32, 128, (2, 2, 2), 4, (16,), augment_dim=9, fir=True), "--arch ncsnpp --cond 0", 56),
    "edm-ffhq-64x64-uncond-vp": (EDMNet(64, 128, (1, 2, 2, 2), 4, (16,), augment_dim=9), "--arch ddpmpp --cres 1,2,2,2", 62),
    "edm-afhqv2-64x64-uncond-ve": (EDMNet(64, 128, (1, 2, 2, 2), 4, (16,), augment_dim=9, fir=True), "--arch ncsnpp", 63),
    "edm-imagenet-64x64-cond-adm": (EDMNet(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), label_dim=1000, song=False), "--arch adm", 296),
}
DIT_FILES = {
    "DiT-XL-2-256x256": (PublishedDiT(32), "--model DiT-XL/2 --image-size 256", 675),
    "DiT-XL-2-512x512": (PublishedDiT(64), "--model DiT-XL/2 --image-size 512", 676),
}
FILES = OPENAI_FILES | EDM_FILES | DIT_FILES
# The commands of docs/weights.md, by the files that they read.
DOCUMENTED = {
    Path(words[3]).stem: " ".join(words[5:])
    for words in commands((ROOT / "docs" / "weights.md").read_text())
    if words[2] == "diffusion.convert" and words[3].endswith(".pt")
}


def test_the_documented_commands_are_of_published_networks():
    assert len(DOCUMENTED) >= 6 and DOCUMENTED.keys() <= FILES.keys()


def unread(name: str) -> bool:
    """Whether no tensor of ours holds this one: filters and positions, which are compared, and what samples are not told."""
    return name.endswith("resample_filter") or name.removeprefix("model.") in ("pos_embed", "map_augment.weight", "map_label.bias", "u")


CASES = [pytest.param(name, line, id=name) for name, (_, line, _) in FILES.items()]


@pytest.mark.parametrize("name, line", CASES + [pytest.param(*case, id=f"docs, {case[0]}") for case in DOCUMENTED.items()])
def test_the_published_networks_fit_name_for_name_at_full_size(name, line, tmp_path):
    """Each tensor of theirs has one place of ours, and each place of ours one of theirs; only their shapes are made. A network has as many
    parameters as its authors say."""
    reference, _, millions = FILES[name]
    shapes = reference.shapes()
    count = sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith("resample_filter"))
    assert count / 1e6 == pytest.approx(millions, rel=0.015)
    file, vae = tmp_path / f"{name}.pt", tmp_path / "vae"
    file.write_bytes(b"the names and shapes alone are here")
    vae.mkdir()
    (vae / "config.json").write_text(json.dumps({"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}))
    prefix = "model." if name.startswith("edm") else ""
    with torch.device("meta"):
        tensors = {f"{prefix}{key}": torch.empty(shape) for key, shape in shapes.items()}
    tensors |= {key: reference.taps for key in tensors if key.endswith("resample_filter")}
    tensors |= {"pos_embed": reference.positions(torch.float32)} if "pos_embed" in tensors else {}
    published = Weights(file, tensors, words(line) | ({"vae": str(vae)} if name.startswith("DiT") else {}))
    found = found_among(LAYOUTS, published).read(published)
    channels = reference.in_channels if isinstance(reference, PublishedDiT) else 3
    classes = found.config["conditions"].get("num_classes", 0)
    size = found.config["codec"]["data_shape"][0] // (8 if name.startswith("DiT") else 1)
    given = {"in_channels": channels, "out_channels": reference.out_channels, "image_size": size, "num_classes": classes}
    with torch.device("meta"):
        network = build(found.config["network"], "network", given)
    assert {key: tuple(value.shape) for key, value in found.weights.items()} == {
        key: tuple(value.shape) for key, value in network.state_dict().items()
    }
    assert len(found.weights) == sum(not unread(key) for key in tensors)
    assert classes == (reference.label_dim if isinstance(reference, EDMNet) else reference.num_classes)


@torch.no_grad()
def test_the_heads_matter():
    """The test above could not pass by chance: with another order of q, k and v, and with other heads, the output is another."""
    reference, _ = SMALL["improved"]
    weights, x, label = weights_for(reference), torch.randn(1, 3, 32, 32), torch.tensor([400.0])
    of = partial(OpenAI, 32, (1, 2, 2, 2), 3, (2, 4))
    outs = [net(weights, x, label) for net in (reference, of(heads_first=False), of(num_heads=2))]
    assert all((out - outs[0]).abs().max() > 1e-2 for out in outs[1:])


@torch.no_grad()
@pytest.mark.parametrize("name", ["guided, new order, blocks that resample", "improved, no scale and shift"])
def test_diffusers_computes_the_same_of_what_is_written_for_it(name, tmp_path):
    """From their layout to diffusers' by way of ours: a third implementation."""
    diffusers = pytest.importorskip("diffusers")
    reference, line = SMALL[name]
    weights = weights_for(reference)
    torch.save(weights, tmp_path / "theirs.pt")
    write_as(str(tmp_path / "theirs.pt"), str(tmp_path / "folder"), "diffusers", flags=words(line))
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet").eval()
    x, label, classes = torch.randn(2, 3, 16, 16), torch.tensor([0.0, 417.0]), torch.tensor([0, 4])
    expected = reference(weights, x, label, classes)
    torch.testing.assert_close(unet(x, label, class_labels=classes).sample, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_what_diffusers_has_no_counterpart_of_is_refused_by_its_name(tmp_path):
    reference, line = SMALL["improved"]
    torch.save(weights_for(reference), tmp_path / "theirs.pt")
    with pytest.raises(UserError, match=r"has no counterpart of network\.details\.label_scale=0\.25, only of 1\.0"):
        write_as(str(tmp_path / "theirs.pt"), str(tmp_path / "folder"), "diffusers", flags=words(line))
    assert not (tmp_path / "folder").exists()
