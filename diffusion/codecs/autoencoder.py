"""The codec of latent diffusion: pictures become latents of an autoencoder that was trained before (Rombach et al. 2112.10752)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffusion.codecs.pixels import Pixels
from diffusion.codecs.standardised import on_device
from diffusion.support.errors import UserError
from diffusion.support.hashes import tensors_hash
from diffusion.support.ranges import Checked, Few, Finite, Positive
from diffusion.typing import Noise


@dataclass(frozen=True)
class Autoencoder(Checked):
    """x_0 = (z - mean) / std of latents z ~ N(mu, diag e^logvar), the posterior of a picture; mean and std have a number for each channel.

    `network` is a torch module with `factor` f, `latent_channels`, `moments(x [b, c, h, w]) -> (mu, logvar)`, each [b, z, ceil(h/f),
    ceil(w/f)], and `decode(z) -> x [b, c, f h', f w']`, of which the picture is the upper left part. It is used as it is: in evaluation
    mode, without gradients, in its own precision whatever autocast says (Stable Diffusion's overflow in half precision), `slices` pictures
    at a time, on the device of what it is given. It is nobody's submodule, so that no optimizer, average or checkpoint holds it.

    `pixels` is the codec that the autoencoder was trained with, of pictures of this size. `weights` is the network's hash. `cached` says
    that a training encodes its pictures once, see `diffusion.data.Posteriors`. `keep(folder)` writes the autoencoder to a folder, from
    which `diffusion.latents` reads it again; None where that is done.

    Raises ValueError unless mean and std have as many numbers as there are latent channels."""

    network: Any = field(repr=False, compare=False)
    pixels: Pixels
    mean: Sequence[Finite]
    std: Sequence[Positive]
    slices: Few = field(default=64, compare=False)
    cached: bool = field(default=True, compare=False)
    weights: str = ""
    keep: Callable[[Path], Any] | None = field(default=None, repr=False, compare=False)

    range: ClassVar[None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("mean", "std"):
            if len(value := getattr(self, key)) != self.network.latent_channels:
                raise ValueError(
                    f"codec.{key}={list(value)} should have {self.network.latent_channels} numbers, one for each channel of the latents."
                )
        self.network.eval().requires_grad_(False)
        if not self.weights:
            object.__setattr__(self, "weights", tensors_hash(self.network.state_dict()))

    @property
    def factor(self) -> int:
        """How many pixels of a side are one of the latents'."""
        return self.network.factor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x_0: (latent channels, ceil(height / f), ceil(width / f))."""
        _, *size = self.pixels.shape
        return (self.network.latent_channels, *(-(-side // self.factor) for side in size))

    @torch.no_grad()
    def moments(self, batch: Tensor) -> Tensor:
        """The mean and the log-variance of z: uint8 [b, h, w, c] -> float [b, 2, *shape]."""
        kind = self._moved(batch.device)
        with torch.autocast(batch.device.type, enabled=False):
            parts = [torch.stack(self.network.moments(self.pixels.encode(part).to(kind)), 1) for part in batch.split(self.slices)]
        return torch.cat(parts)

    def draw(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """x_0 [b, *shape] of such moments, z drawn by `noise`, or its mean without; laid out channels-last in memory."""
        mu, logvar = moments.unbind(1)
        z = mu if noise is None else mu + (0.5 * logvar).exp() * noise(mu)
        mean, std = self._scale(z)
        return ((z - mean) / std).contiguous(memory_format=torch.channels_last)

    def encode(self, batch: Tensor, noise: Noise | None = None) -> Tensor:
        """uint8 [b, h, w, c] -> x_0 [b, *shape], drawn by `noise`, or its mean without."""
        return self.draw(self.moments(batch), noise)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """float [b, *shape] -> uint8 [b, h, w, c]."""
        channels, height, width = self.pixels.shape
        images = [x.new_empty(0, height, width, channels, dtype=torch.uint8)]
        with torch.autocast(x.device.type, enabled=False):
            for part in x.to(self._moved(x.device)).split(self.slices) if len(x) else ():
                mean, std = self._scale(part)
                images.append(self.pixels.decode(self.network.decode(part * std + mean)[..., :height, :width]))
        return torch.cat(images)

    def sized(self, height: int, width: int) -> Self:
        """The same for pictures of another size."""
        return replace(self, pixels=self.pixels.sized(height, width))

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set (`diffusion.data.ImageSet`) and from the autoencoder, as plain data.

        Raises UserError unless the data are pictures of 8 bits with as many channels as those that the autoencoder was trained on."""
        shape, dtype, channels = list(data.images.shape[1:]), data.images.dtype, self.pixels.shape[0]
        if dtype != "uint8" or len(shape) != 3 or shape[2] != channels:
            raise UserError(
                f"The autoencoder of codec.ckpt is one of pictures of 8 bits with channels={channels}, and {data.name} holds {dtype} "
                f"{shape}; train one on these data by task=autoencoder."
            )
        return {"data_shape": shape, "mean": list(self.mean), "std": list(self.std), "weights": self.weights}

    def describe(self) -> dict[str, Any]:
        """What the passport of a number says of it."""
        return {"name": type(self).__name__, "weights": self.weights}

    def _moved(self, device: torch.device) -> torch.dtype:
        """The network's precision, float32 for one without numbers; the network is moved to the device, if it is elsewhere."""
        numbers = chain(self.network.parameters(), self.network.buffers())
        found = next((number for number in numbers if number.is_floating_point()), None)
        if found is None:
            return torch.float32
        if found.device != device:
            self.network.to(device)
        return found.dtype

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std, each [z, 1, 1]."""
        mean, std = (on_device(tuple(numbers), like.device, like.dtype)[:, None, None] for numbers in (self.mean, self.std))
        return mean, std
