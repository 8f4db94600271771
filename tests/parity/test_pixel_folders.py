"""Pixel models against diffusers, in both directions: the network's output, the betas, and whole samplings.

diffusers computes its sinusoid and its levels in float32. Its pipelines begin at z where ours begin at sigma_1 z, so here both do. Its
DDIM keeps the eps of an x_0 that it has clipped, where ours derives it again, so DDIM is compared unclipped."""

import json

import pytest
import torch
from composing import TINY, composed
from pixel_folders import CIFAR, as_first_published, pipeline, unet

from diffusion.checkpoint import load
from diffusion.model import assemble
from diffusion.noise import SeededNoise
from diffusion.samplers import last
from diffusion.support.errors import UserError

diffusers = pytest.importorskip("diffusers")
from safetensors.torch import save_file  # noqa: E402

from diffusion.foreign.exported import write_pipeline  # noqa: E402
from diffusion.foreign.pipelines import pixel_model, theirs_of  # noqa: E402

pytestmark = pytest.mark.xdist_group("foreign")
LABELS, SEEDS = torch.tensor([0.0, 417.0, 999.0]), [3, 8]
NETWORKS = {
    "usual": {},
    "cifar10": CIFAR,
    "norms": {"norm_eps": 0.01, "norm_num_groups": 4},
    "cosines first, symmetric": {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1},
    "sines first, one-sided": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None},
    "half a shift": {"freq_shift": 0.5},
    "adaptive norms": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "attention_head_dim": 16},
    "classes": {"num_class_embeds": 5},
    "residual resampling": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "upsample_type": "resnet",
    },
    "attention everywhere, resampled by it": {
        "down_block_types": ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3,
        "block_out_channels": (16, 32, 32),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "odd widths": {"block_out_channels": (32, 48), "time_embedding_dim": 100},
    "no attention in the middle": {"add_attention": False, "layers_per_block": 3},
    "a rectangle": {"sample_size": (16, 24)},
    "one level": {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "grey": {"in_channels": 1, "out_channels": 1},
}


def outputs(ours, theirs):
    """Of both networks, of the same pictures, steps and classes."""
    size = theirs.config.sample_size
    size = (size, size) if isinstance(size, int) else size
    x = torch.randn(3, theirs.config.in_channels, *size, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 3, 2]) if theirs.config.num_class_embeds else None
    with torch.no_grad():
        return ours(x, LABELS, classes), theirs(x, LABELS, classes).sample


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_of_a_folder(tmp_path, name):
    """And back: its tensors by diffusers' names are those of the folder, none changed and none left out."""
    theirs = unet(**NETWORKS[name])
    theirs.save_pretrained(tmp_path)
    converted = pixel_model(tmp_path)
    network = converted.model().denoiser.network
    found, expected = outputs(network, theirs)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    back, own = theirs_of(network, null_class=False), theirs.state_dict()
    assert back.keys() == own.keys() and all(torch.equal(back[key], own[key]) for key in own)


def test_a_folder_as_the_first_were_published(tmp_path):
    """All in one place, weights in a .bin by the names of 2022; diffusers itself opens it alike."""
    folder = as_first_published(tmp_path / "ddpm-cifar10-32")
    theirs = diffusers.DDPMPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=False)
    model = load(folder)
    torch.testing.assert_close(*outputs(model.denoiser.network, theirs.unet), rtol=0, atol=1e-5)
    assert model.config["sampler"] == {"_target_": "diffusion.samplers.DDPM", "variance": "fixed_large"}
    assert model.config["grid"]["steps"] == 1000 and model.codec.data_shape == [32, 32, 3]


WAYS = {
    "ddpm": ("DDPMScheduler", {}, "DDPMPipeline"),
    "ddpm-large-unclipped": ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, "DDPMPipeline"),
    "ddpm-learned": ("DDPMScheduler", {"variance_type": "learned_range"}, "DDPMPipeline"),
    "ddpm-x0": ("DDPMScheduler", {"prediction_type": "sample", "timestep_spacing": "trailing"}, "DDPMPipeline"),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, "DDIMPipeline"),
    "ddim-v-zero-snr": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        "DDIMPipeline",
    ),
    "listed": ("DDPMScheduler", {"trained_betas": torch.linspace(0.001, 0.04, 500).tolist(), "num_train_timesteps": 500}, "DDPMPipeline"),
}


def sampled(model, pipe, steps=10):
    """(ours, theirs): pictures of the same seeds in as many steps, from 0 to 1 and unrounded."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    expected = pipe(batch_size=2, generator=generators, num_inference_steps=steps, output_type="pt").images
    recipe = model.recipe(grid=model.config["grid"] | {"steps": steps})
    noise = SeededNoise(SEEDS, torch.device("cpu"))
    z = noise(torch.empty(2, *recipe.shape))  # where diffusers begins
    x = last(recipe.sampler(recipe.denoiser, z, recipe.grid(recipe.denoiser.schedule), noise)).x
    return (x / 2 + 0.5).clamp(0, 1), expected


@pytest.mark.parametrize("name", WAYS)
def test_a_folder_samples_as_diffusers_does(tmp_path, name):
    scheduler, settings, kind = WAYS[name]
    learned = {"out_channels": 6} if name == "ddpm-learned" else {}
    pipeline(tmp_path, scheduler, settings, kind, **learned)
    found, expected = sampled(load(tmp_path), getattr(diffusers, kind).from_pretrained(tmp_path, local_files_only=True))
    assert 0.1 < expected.std() < 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


OURS = {
    "usual": ["schedule=linear"],
    "cosine, learned variance, classes": ["objective=hybrid", "network.scale_shift=true"],
    "quadratic, as a list of betas": ["schedule=quadratic", "network.resample_in_resblock=true", "conditions=none"],
    "cosine of another s": ["schedule=cosine", "schedule.s=0.02", "sampler=ddim", "conditions=none", "objective=simple"],
    "v, zero terminal SNR": ["parameterization=v", "schedule=linear", "schedule.zero_terminal_snr=true", "network.scale_shift=false"],
    "sigmoid, x0, fewer steps": ["parameterization=x0", "schedule=sigmoid", "schedule.num_timesteps=250", "objective=simple"],
}
NORMS = "+network.details={_target_:diffusion.networks.details.Details,groups:4,eps:1e-3}"


def random_model(*words):
    """A model of a configuration, every weight of it drawn."""
    config = composed(*TINY, NORMS, "network.heads=1", *words)
    config["codec"]["data_shape"] = [8, 8, 1]
    if "num_classes" in config["conditions"]:
        config["conditions"]["num_classes"] = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = assemble(config)
        for weight in model.denoiser.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    model.denoiser.eval().requires_grad_(False)
    return model


@pytest.mark.parametrize("name", OURS)
def test_our_model_as_a_folder(tmp_path, name):
    """diffusers opens it: the same output, the same betas. We open it as a checkpoint: the same weights, and the same pictures."""
    model = random_model(*OURS[name])
    write_pipeline(model, {"name": "ours"}, tmp_path / "there")
    kind = json.loads((tmp_path / "there" / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(tmp_path / "there", local_files_only=True)
    torch.testing.assert_close(*outputs(model.denoiser.network, pipe.unet), rtol=0, atol=1e-5)
    steps = torch.arange(1, len(pipe.scheduler.alphas_cumprod) + 1) / len(pipe.scheduler.alphas_cumprod)
    alpha = model.denoiser.schedule(steps.double())[0]
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), alpha**2, rtol=1e-4, atol=1e-6)
    back = load(tmp_path / "there")
    own, again = model.denoiser.network.state_dict(), back.denoiser.network.state_dict()
    assert own.keys() == again.keys() and all(torch.equal(own[key], again[key]) for key in own)
    assert back.denoiser.learned_variance == model.denoiser.learned_variance
    cond = model.conditions.ask(torch.arange(2))
    ways = {"grid": model.config["grid"], "sampler": model.config["sampler"]}
    ours, theirs = (one.recipe(**ways)(SEEDS, cond).images.int() for one in (model, back))
    assert (ours - theirs).abs().max() <= 1  # a level of 255


def test_what_we_write_diffusers_samples(tmp_path):
    model = random_model("schedule=linear", "conditions=none", "objective=simple")
    write_pipeline(model, {"name": "ours"}, tmp_path / "there")
    found, expected = sampled(model, diffusers.DDPMPipeline.from_pretrained(tmp_path / "there", local_files_only=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedule=flow", "parameterization=velocity", "objective=simple"], "no counterpart of parameterization=Velocity"),
        (["schedule=vp_sde", "objective=simple"], "no counterpart of schedule=VPSDE"),
        (["+network.block=[conv,atn]"], r"no counterpart of network.block=\['conv', 'atn'\]"),
        (["+network.skip_rescale=true"], "no counterpart of network.skip_rescale=True"),
        (["network.heads=4", "network.attention=[8,4]"], "heads of this network have 2, 4 channels"),
        (["codec.low=0"], "pixels from -1 to 1"),
        (["~network.details"], r"norms of this network have 2, 4, 6, 8 groups.*groups:2"),
    ],
)
def test_what_diffusers_cannot_express(tmp_path, words, said):
    model = random_model(*words) if words != ["~network.details"] else plain_model()
    with pytest.raises(UserError, match=said):
        write_pipeline(model, {}, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def plain_model():
    config = composed(*TINY)
    config["codec"]["data_shape"], config["conditions"]["num_classes"] = [8, 8, 1], 4
    return assemble(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"center_input_sample": True}, "center_input_sample=True, and only False"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor=1.4, and only 1"),
        ({"act_fn": "gelu"}, "act_fn=gelu, and only silu or swish"),
        ({"class_embed_type": "timestep"}, "class_embed_type=timestep, and only null"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None, and only norm_num_groups=8"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups=4, and only norm_num_groups=8"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier, and only positional"),
        ({"mid_block_type": None}, "mid_block_type=None, and only UNetMidBlock2D"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "attention at other levels of its down_block_types"),
        ({"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}, "resamples by conv and resnet"),
        ({"down_block_types": ("KDownBlock2D", "AttnDownBlock2D")}, "KDownBlock2D among its down_block_types"),
        ({"out_channels": 6}, "in_channels=3 and out_channels=6"),
        ({"sample_size": None}, "sample_size=null"),
        ({"freq_shift": 2}, "shift=2"),
        ({"dual_attention": True}, "dual_attention=True, which is no setting"),
        ({"block_out_channels": "wide"}, "block_out_channels=wide, which should be of type list of int"),
    ],
)
def test_a_setting_that_has_no_counterpart(tmp_path, settings, said):
    """By its name: a setting that is not honoured is never passed over."""
    unet().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises((UserError, ValueError), match=said):
        load(tmp_path)


def test_every_setting_of_diffusers_is_looked_at():
    """A setting that a later version brings is refused where it is not its default, since it is read here or named in a table."""
    import inspect

    from diffusion.foreign import unet2d

    source = inspect.getsource(unet2d)
    usual = [name for name in inspect.signature(diffusers.UNet2DModel.__init__).parameters if name != "self"]
    elsewhere = {"in_channels", "out_channels", "sample_size", "num_class_embeds"}
    assert [name for name in usual if name not in elsewhere and f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("conv_in.weight"), "it lacks conv_in.weight"),
        (lambda t: t.update({"extra.bias": torch.zeros(1)}), "has no place for extra.bias"),
        (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), r"conv_in.bias of shape \[3\].*describes \[16\]"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, said):
    tensors = unet().state_dict()
    unet().save_config(tmp_path)
    change(tensors)
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_a_pipeline_of_another_kind_is_named(tmp_path):
    parts = {"scheduler": ["diffusers", "ScoreSdeVeScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ScoreSdeVePipeline", **parts}))
    with pytest.raises(UserError, match="holds a ScoreSdeVePipeline of a UNet2DModel"):
        load(tmp_path)


def test_classes_of_which_none_stands_for_none_stay_as_many(tmp_path):
    """From a folder to ours and back, twice: the row that is zeros here is none of theirs."""
    pipeline(tmp_path / "0", num_class_embeds=5)
    for i in range(2):
        write_pipeline(pixel_model(tmp_path / str(i)).model(), {"name": "ours"}, tmp_path / str(i + 1))
        there = diffusers.UNet2DModel.from_pretrained(tmp_path / str(i + 1) / "unet")
        assert there.config.num_class_embeds == 5
        first = diffusers.UNet2DModel.from_pretrained(tmp_path / "0" / "unet")
        assert torch.equal(there.class_embedding.weight, first.class_embedding.weight)


def test_half_precision_is_read_last_and_said(tmp_path):
    stem, made = "diffusion_pytorch_model", unet()
    made.save_config(tmp_path)
    half = {name: tensor.half() for name, tensor in made.state_dict().items()}
    save_file(half, tmp_path / f"{stem}.fp16.safetensors")
    assert any(f"half precision, since {stem}.fp16.safetensors" in note for note in pixel_model(tmp_path).origin["notes"])
    torch.save(made.state_dict(), tmp_path / f"{stem}.bin")
    found = pixel_model(tmp_path)
    assert torch.equal(found.weights["stem.weight"], made.conv_in.weight)
    assert not any("half precision" in note for note in found.origin["notes"])
    assert found.origin["file"] == f"{tmp_path.name}/{stem}.bin"
    assert not any(str(tmp_path) in note for note in found.origin["notes"])


def card_and_scheduler(folder, *words):
    write_pipeline(random_model("schedule=linear", "conditions=none", "objective=simple", *words), {"name": "ours"}, folder)
    return (folder / "README.md").read_text(), json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def test_noise_in_ddim_is_said(tmp_path):
    """eta is a word of the pipeline's call, where it is 0 if nothing is said."""
    card, _ = card_and_scheduler(tmp_path / "noisy", "sampler=ddim", "sampler.eta=1")
    assert "say pipeline(..., eta=1.0)" in card
    assert "pipeline(..., eta=" not in card_and_scheduler(tmp_path / "plain", "sampler=ddim")[0]


@pytest.mark.parametrize(("low", "high", "limit"), [(-0.5, 0.5, 0.5), (-1, None, 1.0), (None, 0.5, None), (-0.5, None, None)])
def test_a_range_is_clipped_to_where_diffusers_can(tmp_path, low, high, limit):
    ends = [f"+guidance.clip.{end}={value}" for end, value in (("low", low), ("high", high)) if value is not None]
    card, scheduler = card_and_scheduler(tmp_path / "there", "guidance=[clip]", *ends)
    assert scheduler["clip_sample"] is (limit is not None) and (limit is None or scheduler["clip_sample_range"] == limit)
    assert ("guidance Clip is not part" in card) is (limit is None)


def test_the_card_says_how_the_run_samples(tmp_path):
    card, _ = card_and_scheduler(tmp_path / "there", "sampler=heun", "grid=karras", "grid.steps=7", "guidance=[clip]")
    rows = card.partition("## Its sampling")[2]
    assert "| sampler | Heun" in rows and "| grid | Karras steps=7" in rows and "| guidance clip | Clip" in rows
