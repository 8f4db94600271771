"""The codec of an autoencoder that was trained before, read from its run or from a folder in diffusers' format; and its copy in the folder
of the run that works in its latents."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from diffusion.checkpoint import LAST, load, read, write_checkpoint
from diffusion.codecs import Autoencoder, Pixels
from diffusion.foreign.networks import ForeignAutoencoder
from diffusion.model import Model
from diffusion.reconstruction import Autoencoding
from diffusion.support.errors import UserError
from diffusion.support.hashes import tensors_hash
from diffusion.support.ranges import Few, Finite, Positive

COPY = "codec"  # in a run's folder: its autoencoder, as a folder of the kind that it was read from


class Trained(NamedTuple):
    """An autoencoder as it was found: its network and the settings that it has beside its weights, the codec of its pictures, the mean and
    the deviation of each channel of its latents, and what writes a folder that holds it all."""

    network: Any
    settings: Mapping[str, Any]
    pixels: Pixels
    mean: Sequence[float] | None
    std: Sequence[float] | None
    copy: Callable[[Path], Any]


def codec(
    ckpt: str | None = None,
    data_shape: Sequence[Few] | None = None,
    mean: Sequence[Finite] | None = None,
    std: Sequence[Positive] | None = None,
    weights: str | None = None,
    cached: bool = True,
    slices: Few = 64,
    home: str | Path | None = None,
) -> Autoencoder:
    """The codec of the autoencoder in the folder `ckpt`: a run of task=autoencoder, or diffusers' AutoencoderKL, alone or in a Stable
    Diffusion folder. If the run in the folder `home` has a copy of it, that is taken.

    What is None is the autoencoder's own: the shape of a picture, (height, width, channels), and the latents' mean and std. `weights` is
    the hash that those of the network should have, with its settings. See `Autoencoder` for the other settings.

    Raises UserError where there is no autoencoder, it is another than it was, or it does not say its latents' mean and std."""
    own = None if home is None else Path(home) / COPY
    place = own if own is not None and own.is_dir() else ckpt
    if place is None:
        raise UserError("codec=autoencoder takes an autoencoder that was trained before: say which by codec.ckpt=runs/NAME.")
    found = found_in(Path(place))
    digest = tensors_hash(found.network.state_dict(), {**found.settings, "range": found.pixels.range})
    if weights not in (None, digest):
        raise UserError(
            f"The autoencoder in {place} is another than it was: its weights and settings had the hash {weights}, now {digest}."
        )
    mean, std = (said if said is not None else known for said, known in ((mean, found.mean), (std, found.std)))
    if mean is None or std is None:
        raise UserError(
            f"{place} does not say the mean and the deviation of its latents; train it to its end, or say codec.mean and codec.std."
        )
    pixels = found.pixels.sized(*data_shape[:2]) if data_shape is not None else found.pixels
    return Autoencoder(found.network, pixels, mean, std, slices, cached, digest, None if place == own else found.copy)


def found_in(place: Path) -> Trained:
    """The autoencoder in a folder of any kind. Raises UserError if there is none."""
    within = place / "vae" if (place / "model_index.json").is_file() else place
    return of_diffusers(within) if (within / "config.json").is_file() else of_run(place)


def of_run(place: Path) -> Trained:
    """That of a run of ours, with its averaged weights. Raises UserError as `load` does, and for a run of another kind."""
    model = load(place, kind=nn.Module)
    if not isinstance(model.denoiser, Autoencoding) or not isinstance(model.codec, Pixels):
        raise UserError(
            f"codec.ckpt={place} is a run of another kind, and an autoencoder of pictures is needed: train one by task=autoencoder."
        )
    if not isinstance(latents := read(place)[1].get("latents", {}), dict):
        raise UserError(f"The checkpoint of {place} says {latents} of its latents; it is damaged.")
    network, settings = model.denoiser.network, {"network": model.config["network"]}
    return Trained(network, settings, model.codec, latents.get("mean"), latents.get("std"), partial(copied, model, latents))


def of_diffusers(place: Path) -> Trained:
    """diffusers' AutoencoderKL. Raises UserError as `diffusion.foreign` does."""
    network = ForeignAutoencoder.read(place)
    config, z = network.vae.config, network.latent_channels
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    pixels = Pixels((config.sample_size, config.sample_size, config.in_channels))
    return Trained(network, settings, pixels, [network.shift] * z, [1 / network.scale] * z, network.vae.save_pretrained)


def copied(model: Model, latents: dict[str, Any], folder: Path) -> None:
    """A run's folder that holds the weights of this model alone, averaged as they are, its configuration and its latents' statistics."""
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
    ema = {"shadow": {}, "average": model.ema}
    content = {"state_dict": weights, "ema": ema, "global_step": model.step, "latents": latents}
    write_checkpoint(content, folder / "checkpoints" / LAST)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(model.config), sort_keys=False))
