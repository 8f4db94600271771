"""Tiny Stable Diffusion folders of random weights, in exactly the format in which they are published."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch

# What the two families differ in: the token that pads a prompt, attention in float32, the meaning of the output, and the way to sample.
BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
ONE = SimpleNamespace(pad="<|endoftext|>", unet={}, scheduler=("PNDMScheduler", {"skip_prk_steps": True}))
TWO = SimpleNamespace(
    pad="!",
    unet=dict(upcast_attention=True, use_linear_projection=True),
    scheduler=("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}),
)
KINDS = {"one": ONE, "two": TWO}
LETTERS = "!\"#$%&'()*+,-./0123456789:;<=>?@[]^_`abcdefghijklmnopqrstuvwxyz{|}~"
WORDS = 77  # of a prompt, as CLIP's


def tokenizer(folder: Path, pad: str):
    """CLIP's tokenizer with a token for each letter, inside of a word and at its end, and no merges; number 0 is "!", as in CLIP's own."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), start, end]
    said = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(said))
    more = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | more | {"model_max_length": WORDS}))
    return CLIPTokenizer.from_pretrained(folder)


def clip(folder: Path, seed: int = 0, pad: str = ONE.pad) -> Path:
    """A folder of a text encoder of random weights alone, with its tokenizer: 77 vectors of 16 numbers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with TemporaryDirectory() as place:
        words = tokenizer(Path(place) / "words", pad)
        words.save_pretrained(folder)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    size = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **size, **ends)).save_pretrained(folder)
    return folder


def written(folder: Path, kind: SimpleNamespace = ONE, seed: int = 0) -> Path:
    """A folder of random weights: pictures of 16 x 16, latents of 4 x 8 x 8, a context of 77 x 32."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer(folder / "tokenizer", kind.pad)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    size = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **size, **ends)).save_pretrained(folder / "text_encoder")
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
            **kind.unet,
        ).save_pretrained(folder / "unet")
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.18215,
        ).save_pretrained(folder / "vae")
    name, settings = kind.scheduler
    getattr(diffusers, name)(**BETAS, set_alpha_to_one=False, **settings).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", name],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
