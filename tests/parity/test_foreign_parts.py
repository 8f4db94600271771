"""What is read of a folder in diffusers' format, against diffusers' own reading: schedules, time steps, levels, networks."""

import inspect
import json

import pytest
import torch
from stable_folders import BETAS

from diffusion.codecs import Autoencoder, Pixels
from diffusion.support.build import build
from diffusion.support.errors import UserError

diffusers = pytest.importorskip("diffusers")

from diffusion.foreign.networks import ConditionalUNet, ForeignAutoencoder, UpcastAttention  # noqa: E402
from diffusion.foreign.scheduler import FILE, KNOWN, ways_of  # noqa: E402

pytestmark = pytest.mark.xdist_group("foreign")
STEPS = 12


def saved(tmp_path, name, **settings):
    """A scheduler of diffusers, and what we read of its file."""
    kind = getattr(diffusers, name)
    scheduler = kind(**{key: value for key, value in (BETAS | settings).items() if key in inspect.signature(kind).parameters})
    scheduler.save_pretrained(tmp_path)
    return scheduler, ways_of(tmp_path)


def levels(found):
    """(the steps, the levels sigma/alpha) of the folder's own grid."""
    schedule = build(found["schedule"])
    times = build(found["grid"] | {"steps": STEPS})(schedule)
    assert times[-1] == 0 and len(times) == STEPS + 1
    return schedule.label(times[:-1]), (-schedule.log_snr(times[:-1]) / 2).exp()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize(("total", "zero"), [(1000, False), (1000, True), (200, False)])
def test_the_schedule(tmp_path, kind, total, zero):
    """abar at every time step, to the rounding of diffusers' float32 (its error where abar is near 1 is that of 1 - abar)."""
    config = dict(beta_schedule=kind, num_train_timesteps=total, rescale_betas_zero_snr=zero, beta_start=0.001, beta_end=0.03)
    config["prediction_type"] = "v_prediction" if zero else "epsilon"  # which says nothing of pure noise
    scheduler, found = saved(tmp_path, "DDPMScheduler", **config)
    alpha, sigma = build(found["schedule"])(torch.arange(1, total + 1, dtype=torch.float64) / total)
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=2e-4 if kind == "squaredcos_cap_v2" else 2e-5, atol=1e-6)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def outer(values, steps=STEPS):
    """The values at the steps of a grid, of those that a scheduler of two calls a step lists."""
    return values[:steps] if len(values) <= steps + 1 else torch.cat([values[:1], values[2 if len(values) % 2 else 1 :: 2]])[:steps]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", sorted(KNOWN.keys() - {"PNDMScheduler"}))
def test_the_grid(tmp_path, name, spacing):
    """The steps that the network is told, and the levels that the sampler moves between."""
    if name == "DPMSolverSinglestepScheduler" and spacing != "linspace":
        pytest.skip("it knows one spacing")
    scheduler, found = saved(tmp_path, name, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    told, sigmas = levels(found)
    torch.testing.assert_close(told, outer(scheduler.timesteps.double()), rtol=1e-5, atol=1e-4)
    if hasattr(scheduler, "sigmas"):
        torch.testing.assert_close(sigmas, outer(scheduler.sigmas.double()), rtol=1e-4, atol=1e-6)


def test_the_grid_of_pndm(tmp_path):
    """It visits the second step twice."""
    scheduler, found = saved(tmp_path, "PNDMScheduler", skip_prk_steps=True)
    scheduler.set_timesteps(STEPS)
    torch.testing.assert_close(levels(found)[0], scheduler.timesteps.unique().flip(0).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"]
)
@pytest.mark.parametrize("ladder", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_the_ladder(tmp_path, name, ladder):
    """Of levels; the steps that the network is told are whole numbers for some of diffusers' schedulers, rounded or cut, and fractional
    here."""
    scheduler, found = saved(tmp_path, name, **{ladder: True})
    scheduler.set_timesteps(STEPS)
    told, sigmas = levels(found)
    torch.testing.assert_close(sigmas, outer(scheduler.sigmas.double()), rtol=1e-4, atol=1e-6)
    assert (told - outer(scheduler.timesteps.double())).abs().max() < 1


@pytest.fixture
def published(tmp_path):
    """What is read of Stable Diffusion 1.5's own file, which names neither prediction_type nor timestep_spacing."""
    config = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "clip_sample": False, "set_alpha_to_one": False, **BETAS}
    (tmp_path / FILE).write_text(json.dumps(config | {"skip_prk_steps": True, "trained_betas": None}))
    return ways_of(tmp_path)


def test_settings_that_are_left_out_are_diffusers_own(published):
    assert published["parameterization"]["_target_"].endswith(".Epsilon")
    assert published["grid"] == {"_target_": "diffusion.grids.Leading", "steps": 50, "offset": 1}
    assert published["sampler"] == {"_target_": "diffusion.samplers.PNDM", "skip_prk_steps": True}


def test_000_eq_24_to_30_the_betas_of_stable_diffusion(published):
    """The table of document 000, to the ten decimals that it prints."""
    betas = build(published["schedule"]).betas()
    table = {0: 0.00085, 1: 0.0008546986, 2: 0.0008594103, 10: 0.0008975693, 100: 0.0013839726, 999: 0.012}
    assert len(betas) == 1000
    for i, beta in table.items():
        assert betas[i].item() == pytest.approx(beta, rel=0, abs=1e-10)
    even = betas.sqrt().diff()  # eq. 24
    torch.testing.assert_close(even, even[:1].expand(999), rtol=1e-9, atol=0)


def test_x0_is_clipped_where_the_scheduler_clips_it(tmp_path):
    _, found = saved(tmp_path, "DDIMScheduler", clip_sample=True, clip_sample_range=3.0)
    assert found["guidance"]["clip"] == {"_target_": "diffusion.guidance.Clip", "low": -3.0, "high": 3.0}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("LCMScheduler", {}, "names the scheduler LCMScheduler, and those that can be read are DDPMScheduler, "),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "has 2 trained_betas for num_train_timesteps=1000"),
        ("DDPMScheduler", {"variance_type": "learned"}, "asks for DDPMScheduler with variance_type=learned, which has no counterpart"),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "algorithm_type=sde-dpmsolver.*solver_order=3",
        ),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas=True, and only False or null can be read"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type=sigma_min, and only zero"),
        ("DPMSolverMultistepScheduler", {"lower_order_final": False}, "lower_order_final=False, and only True"),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}, "euler_at_final=True"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            "solver_type=heun, and only midpoint",
        ),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type=sigma_min"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0, 1]}, "disable_corrector="),
        ("UniPCMultistepScheduler", {"flow_shift": 3.0}, "flow_shift=3.0"),
        ("DEISMultistepScheduler", {"lower_order_final": False}, "lower_order_final=False"),
    ],
)
def test_a_scheduler_without_a_counterpart(tmp_path, name, settings, said):
    getattr(diffusers, name)(**settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        ways_of(tmp_path)


# ---- networks


@pytest.fixture
def folder(stable_diffusion):
    return stable_diffusion["one"]


def test_the_network(folder):
    """The label, fractional between two steps, is its time step, and the condition its context."""
    unet, theirs = ConditionalUNet.read(folder / "unet"), diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    x, label, cond = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 250.5]), torch.randn(2, 77, 32)
    with torch.no_grad():
        torch.testing.assert_close(unet(x, label, cond), theirs(x, label, cond).sample)
        assert (unet(x, label, cond) - unet(x, label + 0.5, cond)).abs().max() > 1e-4
    assert unet.context_channels == 32 and not any(p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize("context", [None, 24])
def test_upcast_attention(context):
    """It is diffusers' own in float32; in half precision its products q k^T, here beyond float16's 65504, stay finite."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    torch.manual_seed(0)
    layer = Attention(16, cross_attention_dim=context, heads=2, dim_head=8, bias=False, upcast_attention=True)
    x, cond = torch.randn(2, 5, 16), context and torch.randn(2, 7, context)
    layer.set_processor(UpcastAttention())
    ours = layer(x, encoder_hidden_states=cond)
    layer.set_processor(AttnProcessor())
    torch.testing.assert_close(ours, layer(x, encoder_hidden_states=cond), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        layer.to_q.weight.mul_(300)
        layer.to_k.weight.mul_(300)
        layer.half()
        layer.set_processor(UpcastAttention())
        half = layer(x.half(), encoder_hidden_states=None if cond is None else cond.half())
    assert half.dtype == torch.float16 and half.isfinite().all()


def test_the_upcast_is_left_in_autocast():
    """bf16 products would differ in the third digit; to_q and to_k are in bf16, so they are given what they make there."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    layer, x = Attention(16, heads=2, dim_head=8, processor=UpcastAttention()), torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours = layer(x)
        q, k, v = (project(x).float().unflatten(-1, (2, -1)).transpose(1, 2) for project in (layer.to_q, layer.to_k, layer.to_v))
        with torch.autocast("cpu", enabled=False):
            mean = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(-2).bfloat16()
        expected = layer.to_out[0](mean)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-3)


def test_the_autoencoder(folder):
    ours, theirs = ForeignAutoencoder.read(folder / "vae"), diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    x, z = torch.randn(2, 3, 15, 13), torch.randn(2, 4, 8, 7)
    assert (ours.factor, ours.latent_channels, ours.scale, ours.shift) == (2, 4, 0.18215, 0.0)
    with torch.no_grad():
        mean, logvar = ours.moments(x)
        whole = torch.cat([torch.cat([x, x[..., -1:]], 3), torch.cat([x, x[..., -1:]], 3)[:, :, -1:]], 2)
        posterior = theirs.encode(whole).latent_dist
        torch.testing.assert_close((mean, logvar), (posterior.mean, posterior.logvar))
        assert mean.shape == logvar.shape == (2, 4, 8, 7)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample)
        ours.vae.quant_conv.bias[4:] = torch.tensor([90.0, -90.0, 0.0, 0.0])
        assert ours.moments(x)[1].amax() == 20 and ours.moments(x)[1].amin() == -30


def test_001_the_latents_of_512_pixels():
    """Document 001 has 3 x 512 x 512 become 6 x 64 x 64; Stable Diffusion's are 4 x 64 x 64. The network is of its size, without
    numbers."""
    widths = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    with torch.device("meta"):
        network = ForeignAutoencoder(diffusers.AutoencoderKL(**widths, **blocks))
        mean, logvar = network.moments(torch.empty(1, 3, 512, 512))
        assert mean.shape == logvar.shape == (1, 4, 64, 64) and network.decode(mean).shape == (1, 3, 512, 512)
    assert Autoencoder(network, Pixels((512, 512, 3)), [0.0] * 4, [1.0] * 4, weights="none").shape == (4, 64, 64)
