"""Values in others' files that are none: one sentence that names the file and what is wrong, before anything is made of them."""

import json
from pathlib import Path

import pytest
import torch
from pixel_folders import pipeline
from published_dit import PublishedDiT
from published_edm import EDMNet
from published_openai import OpenAI, numbers

from diffusion.convert import write_as
from diffusion.foreign.published import converted
from diffusion.foreign.scheduler import FILE, KNOWN, ways_of
from diffusion.support.errors import UserError

diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.xdist_group("foreign")
SCHEDULER, NETWORK, INDEX = f"scheduler/{FILE}", "unet/config.json", "model_index.json"
WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pixel model's folder, which `changed` changes for a test."""
    return pipeline(tmp_path_factory.mktemp("values") / "pipe", settings={"num_train_timesteps": 20})


@pytest.fixture
def changed(made):
    """A function that puts values into a file of it, and leaves the others; all is as it was afterwards."""
    before = {name: (made / name).read_text() for name in (SCHEDULER, NETWORK, INDEX)}

    def change(name, **values):
        (made / name).write_text(json.dumps(json.loads(before[name]) | values))
        return made

    yield change
    for name, text in before.items():
        (made / name).write_text(text)


def sentence(folder, flags=None):
    """What the command would print."""
    with pytest.raises(UserError) as told:
        converted(folder, flags or {}).model()
    said = str(told.value)
    assert "\n" not in said and len(said) < 500 and said.endswith(".")
    assert not any(word in said for word in ("Error", "NoneType", "object is not", "modulo", "<class")), said
    return said


# ---- weights

OPENAI, EDM = OpenAI(32, (1, 2), 1, (2,), num_classes=3), EDMNet(16, 32, (1, 2), 1, (8,), label_dim=3)
DIT = PublishedDiT(8, 2, 3, 48, 1, 4, 5)
FILES = {
    "openai": (OPENAI, {"image_size": "32", "channel_mult": "1,2"}, "middle_block.1.qkv.weight"),
    "edm": (EDM, {"precond": "edm"}, "map_layer0.weight"),
    "dit": (DIT, {"num_heads": "4"}, "blocks.0.attn.qkv.weight"),
}
BAD = {
    "nan": (lambda t: t.index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(float("nan"))), "with a weight of nan"),
    "infinite": (lambda t: torch.full_like(t, float("-inf")), "with a weight of -inf"),
    "beyond float32": (lambda t: t.double() + 1e39, "with a weight of inf in float32"),
    "whole": (lambda t: t.long(), "of int64"),
    "truths": (lambda t: t > 0, "of bool"),
    "complex": (lambda t: t + 0j, "of complex64"),
}
ABSENT = {
    "sparse": (lambda t: t.flatten(1).to_sparse(), "as a tensor without an array (sparse_coo)"),
    "rows": (lambda t: t.flatten(1).to_sparse_csr(), "as a tensor without an array (sparse_csr)"),
    "meta": (lambda t: t.to("meta"), "as a tensor without an array (meta)"),
    "one number": (lambda t: torch.zeros(()).expand(10**6, 10**6), "of shape [1000000, 1000000], of which it holds 4 bytes"),
}


def published(reference):
    found = numbers(reference.shapes())
    found |= {name: reference.taps for name in found if name.endswith("resample_filter")}
    return found | ({"pos_embed": reference.positions(torch.float32)} if "pos_embed" in found else {})


def kept(place: Path, weights: dict, suffix: str) -> Path:
    file = place / f"theirs{suffix}"
    torch.save(weights, file) if suffix == ".pt" else safetensors.save_file({k: v.contiguous() for k, v in weights.items()}, file)
    return file


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("layout", FILES)
def test_weights_that_are_no_numbers(layout, suffix, tmp_path):
    reference, flags, name = FILES[layout]
    whole = published(reference)
    converted(kept(tmp_path, {key: tensor.double() for key, tensor in whole.items()}, suffix), flags).model()
    for change, said in (BAD | (ABSENT if suffix == ".pt" else {})).values():
        file = kept(tmp_path, whole | {name: change(whole[name])}, suffix)
        assert f"{file} has {name} {said}" in sentence(file, flags)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_a_folder_that_are_no_numbers(made, tmp_path, suffix):
    (tmp_path / "unet").mkdir()
    (tmp_path / NETWORK).write_text((made / NETWORK).read_text())
    whole, name = safetensors.load_file(made / f"{WEIGHTS}.safetensors"), "conv_in.weight"
    for change, said in (BAD | (ABSENT if suffix == ".pt" else {})).values():
        file = kept(tmp_path, whole | {name: change(whole[name])}, suffix)
        file.rename(there := tmp_path / f"{WEIGHTS}{'.bin' if suffix == '.pt' else suffix}")
        assert f"{there} has {name} {said}" in sentence(tmp_path / "unet")


def test_a_command_of_them_writes_nothing(tmp_path):
    whole = published(DIT)
    file = kept(tmp_path, whole | {"final_layer.linear.bias": torch.full_like(whole["final_layer.linear.bias"], float("nan"))}, ".pt")
    with pytest.raises(UserError, match=r"final_layer\.linear\.bias with a weight of nan"):
        write_as(str(file), str(tmp_path / "new" / "run"), flags=FILES["dit"][1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["theirs.pt"]


@pytest.mark.parametrize("steps", ["0", "-1", "1001", str(10**9)])
def test_steps_of_dit_s_sampler_that_there_are_not(tmp_path, steps):
    file = kept(tmp_path, published(DIT), ".pt")
    assert f"--num_sampling_steps {steps} should be" in sentence(file, FILES["dit"][1] | {"num_sampling_steps": steps})


@pytest.mark.parametrize("flag", [("sigma_data", "0"), ("sigma_data", "nan"), ("steps", "0"), ("dropout", "2")], ids=str)
def test_flags_of_edm_that_make_no_model(tmp_path, flag):
    file = kept(tmp_path, published(EDM), ".pt")
    with pytest.raises(ValueError, match=f"{flag[0]}={float(flag[1]):g}.* must be"):
        converted(file, {"precond": "edm", flag[0]: flag[1]}).model()


# ---- the scheduler


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_train_timesteps", 10**9, "=1000000000, which must be between 2 and 100000"),
        ("num_train_timesteps", 10**400, "=1000"),
        ("num_train_timesteps", 1, "=1, which must be between 2 and 100000"),
        ("num_train_timesteps", True, "=True, which should be of type int"),
        ("num_train_timesteps", None, "=None, which should be of type int"),
        ("clip_sample_range", 0, "=0, which must be above 0"),
        ("clip_sample_range", -1.0, "=-1.0, which must be above 0"),
        ("clip_sample_range", float("inf"), "=inf, which must be above 0"),
        ("steps_offset", -1, "=-1, which must be between 0 and 100000"),
        ("steps_offset", 20, "nothing can be made of it: grid.offset=20 moves"),
        ("clip_sample", "False", "=False, which should be of type bool"),
        ("clip_sample", 1, "=1, which should be of type bool"),
        ("thresholding", 0, "=0, which should be of type bool | null"),
        ("rescale_betas_zero_snr", "no", "=no, which should be of type bool | null"),
        ("rescale_betas_zero_snr", True, "=True and prediction_type=epsilon, which"),
        ("beta_start", float("nan"), "=nan, which must be above 0 and below 1"),
        ("beta_end", 1, "=1, which must be above 0 and below 1"),
        ("beta_end", "0.02", "=0.02, which should be of type float"),
        ("beta_schedule", "x" * 9999, "=xxx"),
        ("variance_type", 3, "variance_type=3"),
        ("trained_betas", 0.5, "=0.5, which should be of type list of float | null"),
        ("trained_betas", [0.1] * 19, "has 19 trained_betas for num_train_timesteps=20"),
        ("trained_betas", [0.1] * 19 + [2], "[19]=2, which must be above 0 and below 1"),
        ("trained_betas", [0.1] * 19 + ["a"], "which should be of type list of float"),
        ("foo", 3, "=3, which is no setting of a DDPMScheduler"),
        ("clip_sampel", True, "=True, which is no setting of a DDPMScheduler; did you mean clip_sample"),
        ("predict_epsilon", False, "=False, and only True or null can be read"),
        ("timestep_values", [3, 2, 1], "=[3, 2, 1], and only null can be read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_setting_of_a_scheduler(changed, key, value, said, monkeypatch):
    """Nothing of diffusers' is made of what is out of range, so that nothing is as large as it says."""
    calls = []
    make = diffusers.DDPMScheduler.from_config
    monkeypatch.setattr(diffusers.DDPMScheduler, "from_config", lambda said: calls.append(said) or make(said))
    told = sentence(changed(SCHEDULER, **{key: value}))
    assert FILE in told and said in told and (key in told or "grid.offset=" in told)
    assert bool(calls) == (
        (key, value) in [("steps_offset", 20), ("rescale_betas_zero_snr", True)]
    )  # refused for what they are with others


@pytest.mark.parametrize("before", ["DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_settings_that_another_scheduler_left(before, tmp_path):
    """diffusers writes the settings of the scheduler that one was made from beside its own, and does not look at them: nor is here."""
    first = getattr(diffusers, before)()
    for after in KNOWN:
        kind = getattr(diffusers, after)
        own = {key: value for key, value in first.config.items() if key not in ("solver_type", "algorithm_type")}  # words of each class
        kind.from_config(own).save_pretrained(tmp_path)
        said = json.loads((tmp_path / FILE).read_text())
        found = ways_of(tmp_path)
        kind(**{key: said[key] for key in kind().config if key in said and not key.startswith("_")}).save_pretrained(tmp_path)
        assert found == ways_of(tmp_path)


def test_settings_that_earlier_versions_wrote(changed):
    """As the first folders of 2022 have them, and Stable Diffusion's of its clipping, which its PNDM has not."""
    said = {
        "tensor_format": "pt",
        "timestep_values": None,
        "predict_epsilon": True,
        "noise_sampler_seed": None,
        "_mine": 3,
        "skip_prk_steps": True,
    }
    expected = converted(changed(SCHEDULER), {}).config
    assert converted(changed(SCHEDULER, **said), {}).config == expected
    assert converted(changed(SCHEDULER, thresholding=None), {}).config == expected


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("UniPCMultistepScheduler", "solver_order", 10**9, "solver_order=1000000000, which must be between 1 and 3"),
        ("UniPCMultistepScheduler", "solver_type", "x" * 9999, "solver_type=xxx"),
        ("UniPCMultistepScheduler", "shift_terminal", 0.1, "shift_terminal=0.1, of which diffusers makes no UniPC"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "", "algorithm_type=, of which diffusers makes no DPMSolver"),
        ("EulerDiscreteScheduler", "sigma_min", -1, "sigma_min=-1, which must be above 0, or null"),
        ("EulerDiscreteScheduler", "sigma_max", "80", "sigma_max=80, which should be of type float | null"),
        ("PNDMScheduler", "trained_betas", [], "has 0 trained_betas for num_train_timesteps=20"),
    ],
)
def test_a_setting_of_another_scheduler(tmp_path, name, key, value, said):
    folder = pipeline(tmp_path / "pipe", name, {"num_train_timesteps": 20})
    file = folder / SCHEDULER
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert said in sentence(folder)


# ---- the network


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_out_channels", None, "=None, which should be of type list of int"),
        ("block_out_channels", 16, "=16, which should be of type list of int"),
        ("block_out_channels", [0, 32], "[0]=0, which must be between 1 and 100000"),
        ("block_out_channels", [], "has 2 down_block_types for 0 block_out_channels"),
        ("block_out_channels", [16, 32, 32], "has 2 down_block_types for 3 block_out_channels"),
        ("up_block_types", ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"], "has 3 up_block_types for 2 block_out_channels"),
        ("down_block_types", [["DownBlock2D"]], "which should be of type list of str"),
        ("layers_per_block", 10**6, "=1000000, which must be between 1 and 100"),
        ("norm_num_groups", 0, "=0, which must be between 1 and 100000"),
        ("norm_eps", 0, "=0, which must be above 0"),
        ("norm_eps", float("nan"), "=nan, which must be above 0"),
        ("dropout", 2, "=2, which must be between 0 and 1"),
        ("flip_sin_to_cos", "False", "=False, which should be of type bool"),
        ("flip_sin_to_cos", 1, "=1, which should be of type bool"),
        ("center_input_sample", 0, "=0, which should be of type bool"),
        ("downsample_padding", True, "=True, which should be of type int"),
        ("downsample_type", "convolution", "=convolution, and only conv or resnet"),
        ("upsample_type", None, "=None, which should be of type str"),
        ("in_channels", "3", "=3, which should be of type int"),
        ("num_class_embeds", 0, "=0, which must be between 1 and 100000, or null"),
        ("sample_size", "16", "=16, which should be of type int | [int, int] | null"),
        ("sample_size", [16], "=[16], which should be of type int | [int, int] | null"),
        ("sample_size", 15, "=15, which 2 block_out_channels do not halve"),
        ("attention_head_dim", -8, "=-8, which must be between 1 and 100000, or null"),
        ("foo", "x" * 9999, "=xxx"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_setting_of_a_network(changed, key, value, said):
    told = sentence(changed(NETWORK, **{key: value}))
    assert NETWORK in told and key in told and said in told


# ---- the index


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("safety", ["x", "y"], "names the part safety=['x', 'y'], which is not read; the parts that are read are unet, scheduler"),
        ("../x", ["diffusers", "UNet2DModel"], "names the part ../x=['diffusers', 'UNet2DModel'], which is not read"),
        ("unet", ["../x", "UNet2DModel"], "has unet=['../x', 'UNet2DModel'], which should be [diffusers, "),
        ("unet", ["UNet2DModel"], "has unet=['UNet2DModel'], which should be [diffusers, "),
        ("unet", None, "holds a DDPMPipeline of a None"),
        ("unet", [], "holds a DDPMPipeline of a []"),
        ("scheduler", ["mine", "DDPMScheduler"], "has scheduler=['mine', 'DDPMScheduler'], which should be [diffusers, "),
        ("scheduler", [None, None], "has scheduler=[None, None], which should be [diffusers, "),
        ("scheduler", ["diffusers", ["DDPMScheduler"]], "which should be [diffusers, "),
        ("_class_name", ["DDPMPipeline"], "holds a ['DDPMPipeline'] of a UNet2DModel"),
    ],
    ids=str,
)
def test_a_part_that_is_not_read(changed, part, value, said):
    assert said in sentence(changed(INDEX, **{part: value}))


def test_parts_that_change_nothing(changed):
    """Null ones; and a scheduler of another name than its file's is said."""
    assert converted(changed(INDEX, vqvae=[None, None], _module="pipeline_ddpm.py"), {}).origin["notes"] == []
    (note,) = converted(changed(INDEX, scheduler=["diffusers", "DDIMScheduler"]), {}).origin["notes"]
    assert note == f"{INDEX} names a DDIMScheduler, and {FILE} a DDPMScheduler, which is what is taken."
