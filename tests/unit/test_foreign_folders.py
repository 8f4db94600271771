"""Folders in diffusers' format that are of another kind, not complete, or hostile: one sentence each, and nothing of them is run."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.checkpoint import load
from diffusion.classifier import NoisyClassifier
from diffusion.support.errors import UserError

pytestmark = pytest.mark.xdist_group("foreign")
UNET, VAE, CLIP = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture
def folder(stable_diffusion, tmp_path):
    """A copy, to be spoilt."""
    return shutil.copytree(stable_diffusion["one"], tmp_path / "model")


def said(file, **values):
    """Values put into a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def weights(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refused(folder, match):
    with pytest.raises(UserError, match=match) as error:
        load(folder)
    assert str(error.value).rstrip().endswith(".") and "\n" not in str(error.value)


def test_it_is_read(folder):
    """What the spoilt ones differ from."""
    model = load(folder)
    assert model.codec.shape == (4, 8, 8) and model.codec.pixels.shape == (3, 16, 16)
    assert model.codec.std == [1 / 0.18215] * 4 and model.codec.mean == [0.0] * 4
    assert model.describe() == {"run": "model", "step": 0, "weights": model.weights, "ema": None}
    assert not model.denoiser.training and not any(p.requires_grad for p in model.denoiser.parameters())
    assert model.samples.as_posix() == "samples/model"


def test_other_weights_have_another_hash(folder):
    before = load(folder)
    weights(folder / UNET, lambda tensors: tensors["conv_in.bias"].add_(1))
    weights(folder / VAE, lambda tensors: tensors["decoder.conv_in.bias"].add_(1))
    after = load(folder)
    assert before.weights != after.weights and before.codec.weights != after.codec.weights


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_extra(folder, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    refused(folder, rf"needs {library}: install it with pip install 'diffusion\[diffusers\]'")


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "There is no checkpoint .*nowhere.* or a folder in diffusers' format, which has a model_index.json")


def test_a_bare_transformer(folder):
    refused(folder / "text_encoder", "There is no checkpoint .*text_encoder.*which has a model_index.json")


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusionInpaintPipeline", None])
def test_another_pipeline(folder, kind):
    said(folder / "model_index.json", _class_name=kind)
    refused(
        folder,
        rf"holds a {kind}, and of models in diffusers' format Stable Diffusion 1\.x and 2\.x, and those of a UNet2DModel, can be read",
    )


def test_another_part(folder):
    said(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])
    refused(folder, "names CLIPTextModelWithProjection as its text_encoder, and CLIPTextModel can be read")


def test_a_part_that_is_more_or_of_another_library(folder):
    said(folder / "model_index.json", safety=["x", "y"])
    refused(folder, "names the part safety=.'x', 'y'., which is not read; the parts that are read are unet, vae, text_encoder")
    said(folder / "model_index.json", safety=[None, None], tokenizer=["../x", "CLIPTokenizer"])
    refused(folder, r"has tokenizer=.'../x', 'CLIPTokenizer'., which should be \[transformers, the name of a class of it\]")


@pytest.mark.parametrize("file", [UNET, VAE, CLIP])
def test_weights_that_are_no_numbers(folder, file):
    name = next(iter(load_file(folder / file)))
    weights(folder / file, lambda tensors: tensors[name].fill_(float("nan")))
    refused(folder, rf"The weights in .*{file.partition('/')[0]} have numbers that are none, NaN or infinite, in .*; they are damaged")


def test_a_unet_that_is_told_more_than_a_text(folder):
    said(folder / "unet/config.json", time_cond_proj_dim=8)
    weights(folder / UNET, lambda tensors: tensors.update({"time_embedding.cond_proj.weight": torch.zeros(16, 8)}))
    refused(folder, "has time_cond_proj_dim=8, and only null can be read; Stable Diffusion 1.x and 2.x have no other")


def test_a_classifier_is_asked_for(folder):
    with pytest.raises(UserError, match="holds a Denoiser where a NoisyClassifier is needed; give another run"):
        load(folder, kind=NoisyClassifier)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_not_there(folder, part):
    shutil.rmtree(folder / part)
    refused(folder, f"{part}")


@pytest.mark.parametrize("file", [UNET, VAE, CLIP])
def test_weights_that_are_cut_off(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    refused(folder, "do not fit its config.json or are damaged")


@pytest.mark.parametrize("file", [UNET, VAE, CLIP])
def test_weights_that_are_missing(folder, file):
    """The libraries would begin with random ones, and a warning."""
    gone = sorted(load_file(folder / file))[0]
    weights(folder / file, lambda tensors: tensors.pop(gone))
    refused(folder, f"lack .*{gone.rpartition('.')[2]}, which its config.json describes; the folder is not complete")


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_file_that_is_damaged(folder, file):
    (folder / file).write_text('{"_class_name": ')
    refused(folder, f"{file} cannot be read as JSON")


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("beta_start", "a", "has beta_start=a, which should be of type float; it is damaged"),
        ("num_train_timesteps", "1000", "has num_train_timesteps=1000, which should be of type int; it is damaged"),
        ("clip_sample_range", None, "has clip_sample_range=None, which should be of type float"),
        ("beta_schedule", ["linear"], "has beta_schedule=..linear.., which should be of type str"),
        ("num_train_timesteps", -3, "has num_train_timesteps=-3, which must be between 2 and 100000"),
    ],
)
def test_settings_of_a_scheduler_that_are_damaged(folder, key, value, reason):
    said(folder / "scheduler/scheduler_config.json", _class_name="DDIMScheduler", **{key: value})
    with pytest.raises(UserError, match=reason) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key, value", [("attn_implementation", "a/kernel"), ("_attn_implementation", "a/kernel")])
@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_folder_brings_no_code(folder, part, key, value):
    said(folder / part / "config.json", **{key: value})
    refused(folder, rf"{part} has {key}=.*, and only null")


def test_a_tokenizer_of_another_model(folder):
    file = folder / "tokenizer/vocab.json"
    said(file, **{f"word{i}": len(json.loads(file.read_text())) + i for i in range(7)})
    refused(folder, "tokenizer has a tokenizer of .* tokens up to number .* for an encoder that knows ")


def test_latents_of_another_shape(folder):
    import diffusers

    kind = dict(diffusers.UNet2DConditionModel.load_config(folder / "unet")) | {"in_channels": 9}
    diffusers.UNet2DConditionModel.from_config(kind).save_pretrained(folder / "unet")
    refused(folder, "takes 9 channels and makes 4, and the latents of vae have 4; .*paint by edit=inpaint")


def test_a_context_of_another_width(folder):
    import diffusers

    kind = dict(diffusers.UNet2DConditionModel.load_config(folder / "unet")) | {"cross_attention_dim": 48}
    diffusers.UNet2DConditionModel.from_config(kind).save_pretrained(folder / "unet")
    refused(folder, "looks at vectors of 48 numbers, and the text encoder makes 32")


# ---- nothing of a folder is run


class Bomb:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize(("file", "pickled"), [(UNET, "unet/diffusion_pytorch_model.bin"), (CLIP, "text_encoder/pytorch_model.bin")])
def test_a_pickle_is_not_read(folder, tmp_path, file, pickled):
    (folder / file).unlink()
    (folder / pickled).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(folder, "holds no .*safetensors; other kinds of files may be programs")
    assert not (tmp_path / "mark").exists()


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    """A pipeline, a model and a tokenizer of the folder's own."""
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\n"
    for part in (".", "unet", "text_encoder", "tokenizer", "scheduler"):
        for name in ("pipeline", "mine", "modeling_mine", "tokenization_mine"):
            (folder / part / f"{name}.py").write_text(code)
    said(folder / "text_encoder/config.json", auto_map={"AutoModel": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Mine"})
    said(folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})
    said(folder / "unet/config.json", auto_map={"AutoModel": "mine.Mine"})
    load(folder)
    said(folder / "model_index.json", _class_name=["pipeline", "Mine"])
    refused(folder, "holds a ..pipeline., .Mine.., and of models")
    said(folder / "model_index.json", _class_name="StableDiffusionPipeline", unet=["mine", "Mine"])
    refused(folder, "names Mine as its unet, and UNet2DConditionModel can be read")
    assert not (tmp_path / "mark").exists()


def test_what_would_import_a_package_of_the_folder_s_choice(folder):
    said(folder / "unet/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    refused(folder, "has quantization_config=.*, and only null can be read")


# ---- weights in other files


def test_weights_in_half_precision_alone(folder, stable_diffusion):
    """Files named fp16, as many folders have: they are computed with in float32, and differ by their rounding."""
    for file in (UNET, VAE, CLIP):
        weights(folder / file, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
        (folder / file).rename(folder / file.replace(".safetensors", ".fp16.safetensors"))
    half, whole = load(folder), load(stable_diffusion["one"])
    for a, b in zip(half.denoiser.parameters(), whole.denoiser.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.half().float())


def test_weights_in_several_files(folder, stable_diffusion):
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert load(folder).weights == load(stable_diffusion["one"]).weights


# ---- as they were published

OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}  # of the autoencoder's attention
UNSAID = ("upcast_attention", "use_linear_projection", "addition_embed_type", "time_cond_proj_dim", "class_embed_type", "num_class_embeds")


def older(name):
    for new, old in OLD.items():
        name = name.replace(new, old)
    return name


def renamed(file, name, **more):
    tensors = load_file(file)
    save_file({name(key): tensor for key, tensor in tensors.items()} | more, file, metadata={"format": "pt"})


def special(text):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def test_a_folder_of_2022(folder, stable_diffusion):
    """Stable Diffusion 1.x's own: the names of weights, tokens and parts that its libraries had then, and settings that they had not."""
    renamed(folder / VAE, older)
    renamed(folder / CLIP, lambda name: f"text_model.{name}", **{"text_model.embeddings.position_ids": torch.arange(77)[None]})
    for part in ("unet", "vae"):
        config = json.loads((folder / part / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in (*UNSAID, "scaling_factor", "shift_factor", "force_upcast")}
        (folder / part / "config.json").write_text(json.dumps(kept | {"_diffusers_version": "0.6.0"}))
    tokens = {
        f"{name}_token": special(f"<|{text}|>") for name, text in (("bos", "startoftext"), ("eos", "endoftext"), ("unk", "endoftext"))
    }
    said(folder / "tokenizer/tokenizer_config.json", **tokens, name_or_path="openai/clip-vit-large-patch14")
    said(folder / "tokenizer/special_tokens_map.json", **{name: {**token, "__type": None} for name, token in tokens.items()})
    safety = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    said(folder / "model_index.json", _diffusers_version="0.6.0", **safety)
    then, now = load(folder), load(stable_diffusion["one"])
    assert (then.weights, then.codec.weights, then.codec.std) == (now.weights, now.codec.weights, now.codec.std)
    words = ["a cat, in a hat", "", "a" * 100]
    assert torch.equal(then.conditions.encoder.encode(words), now.conditions.encoder.encode(words))
    assert then.recipe().describe()["sampler"] == now.recipe().describe()["sampler"]
