"""Tiny pixel models of random weights in diffusers' format, in the ways that they are published in."""

import json
from pathlib import Path

import torch

from diffusion.convert import write_as

SMALL = dict(
    sample_size=16,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
)
# google/ddpm-cifar10-32's config.json, at an eighth of its width.
CIFAR = dict(
    sample_size=32,
    block_out_channels=(16, 32, 32, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    norm_num_groups=8,
    mid_block_scale_factor=1,
    act_fn="silu",
    center_input_sample=False,
    time_embedding_type="positional",
)


def unet(seed: int = 0, **settings):
    """A UNet2DModel in which every weight is drawn, those of norms and biases too, so that none that goes to another place goes unseen."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = diffusers.UNet2DModel(**{**SMALL, **settings}).eval().requires_grad_(False)
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


def pipeline(folder: Path, scheduler: str = "DDPMScheduler", settings: dict | None = None, kind: str = "DDPMPipeline", **network) -> Path:
    """A folder as diffusers writes a pipeline."""
    import diffusers

    getattr(diffusers, kind)(unet(**network), getattr(diffusers, scheduler)(**(settings or {}))).save_pretrained(folder)
    return folder


def pipe_and_run(place: Path) -> Path:
    """In a folder `pipe`, a pipeline, and `run`, the run that the command makes of it."""
    pipeline(place / "pipe", settings={"num_train_timesteps": 20})
    assert write_as(str(place / "pipe"), str(place / "run")) == str(place / "run")
    return place


def as_first_published(folder: Path) -> Path:
    """A folder as google/ddpm-cifar10-32 is: all files beside each other, weights in a .bin with the attentions' names of that time."""
    import diffusers

    made = unet(**CIFAR)
    folder.mkdir(parents=True)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in made.state_dict().items():
        old = next((name.replace(new, old) for new, old in names.items() if new in name), name)
        renamed[old] = tensor
    torch.save(renamed, folder / "diffusion_pytorch_model.bin")
    head = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4"}
    (folder / "config.json").write_text(json.dumps({**head, **CIFAR}))
    diffusers.DDPMScheduler(variance_type="fixed_large").save_pretrained(folder)
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1", **parts}))
    return folder
