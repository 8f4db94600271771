"""Stable Diffusion 1.x and 2.x, folders in diffusers' format, as models of ours."""

from pathlib import Path
from typing import Any

from diffusion.codecs import Autoencoder, Pixels
from diffusion.conditions import Text
from diffusion.denoiser import Denoiser
from diffusion.foreign.files import read_json, require_parts
from diffusion.foreign.networks import ConditionalUNet, ForeignAutoencoder
from diffusion.foreign.scheduler import ways_of
from diffusion.foreign.text import CLIP
from diffusion.model import Model
from diffusion.support.build import build
from diffusion.support.errors import UserError

INDEX = "model_index.json"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
# The classes that a folder's parts are of, whatever it names: another name is refused, and none is imported.
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
LIBRARIES = {part: "transformers" if part in ("text_encoder", "tokenizer") else "diffusers" for part in (*PARTS, "scheduler")}
# What a pipeline has beside them, that changes nothing of the pictures that are made here.
IDLE = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
SAMPLE_BATCH = 4  # pictures of 512 x 512 at a time


def is_pipeline(path: str | Path) -> bool:
    """Whether there is a folder in diffusers' format."""
    return (Path(path) / INDEX).is_file()


def stable_diffusion(folder: str | Path) -> Model:
    """The model of a folder: its U-Net, schedule and parameterization, the latents of its autoencoder, scaled as it was trained with them,
    and texts by its encoder. Its `config` says the folder's own way to sample.

    Raises UserError for another kind of folder, one that is not complete, and parts that do not fit each other."""
    folder = Path(folder)
    indexed(folder)
    ways = ways_of(folder / "scheduler")
    vae, words = ForeignAutoencoder.read(folder / "vae"), Text(CLIP.of(*CLIP.read(folder / "text_encoder", folder / "tokenizer")))
    unet = ConditionalUNet.read(folder / "unet")
    fitting(folder, unet.unet.config, vae, words.encoder.channels)
    network = words.around(unet)
    denoiser = Denoiser(network, build(ways["schedule"], "schedule"), build(ways["parameterization"], "parameterization"))
    denoiser.eval().requires_grad_(False)
    codec = latents(vae, unet.unet.config.sample_size)
    config = {**ways, "sample_batch_size": SAMPLE_BATCH}
    return Model(denoiser, codec, words, config, folder=folder)


def indexed(folder: Path) -> None:
    """Raises UserError unless a folder's index names a pipeline that is read here, of parts that are."""
    index = read_json(folder / INDEX)
    if (name := index.get("_class_name")) not in PIPELINES:
        raise UserError(
            f"{folder} holds a {name}, and of models in diffusers' format Stable Diffusion 1.x and 2.x, and those of a "
            "UNet2DModel, can be read."
        )
    for part, classes in PARTS.items():
        said = index.get(part)
        found = said[1] if isinstance(said, list) and len(said) == 2 else None
        if found not in classes:
            raise UserError(f"{folder / INDEX} names {found} as its {part}, and {classes[0]} can be read.")
    require_parts(folder / INDEX, index, LIBRARIES, IDLE)


def fitting(folder: Path, unet: Any, vae: ForeignAutoencoder, width: int) -> None:
    """Raises UserError unless the U-Net's channels are those of the latents, and its context is as wide as the text encoder's vectors."""
    channels = vae.latent_channels
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise UserError(
            f"{folder / 'unet'} takes {unet.in_channels} channels and makes {unet.out_channels}, and the latents of vae have {channels}; a "
            "model for inpainting or upscaling is not read: take the one for text to images, and paint by edit=inpaint."
        )
    sides = unet.sample_size if isinstance(unet.sample_size, list | tuple) else [unet.sample_size] * 2
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"{folder / 'unet'} has sample_size={unet.sample_size}, which is no size of latents.")
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{folder / 'unet'} looks at vectors of {unet.cross_attention_dim} numbers, and the text encoder makes {width}; they are of "
            "different models."
        )


def latents(vae: ForeignAutoencoder, size: int | list[int]) -> Autoencoder:
    """The codec of latents of this size, decoded one picture at a time."""
    height, width = (side * vae.factor for side in (size if isinstance(size, list | tuple) else (size, size)))
    z = vae.latent_channels
    return Autoencoder(vae, Pixels((height, width, 3)), mean=[vae.shift] * z, std=[1 / vae.scale] * z, slices=1)
