"""The contract of feature extractors."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from diffusion.support.errors import UserError
from diffusion.support.hashes import tensors_hash


@contextmanager
def own_random_state(seed: int = 0) -> Iterator[None]:
    """Within the context torch draws from a separate state: making a network for a metric must not change the training's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Extractor(ABC):
    """A frozen network from uint8 images to features and class logits.

    Deliberately not an nn.Module: held by a LightningModule or a callback, it stays out of state_dict, EMA and DDP.
    A subclass sets the class attributes, makes its network in `__init__(weights, cache)` and defines `prepare`.

    name      names the network: "digits", "resnet56", "inception"
    frechet   names the Fréchet distance in its features; the word "fid" belongs to the FID Inception network alone
    dim       number of features
    channels  channels the network wants; a grey image is repeated where it wants three
    size      side of the only square image it takes, or None for any size
    resize    says in words which resize is done
    batch     images at a time
    layers    what the network returns, in its order; "features" is the first
    cheap     whether its features cost less than reading them from a disk, so that they are never cached
    rigid     whether each feature has a place in the image, so that images of two shapes cannot be compared
    """

    name: str
    frechet: str
    dim: int
    channels: int = 3
    size: ClassVar[int | None] = None
    resize: ClassVar[str]
    batch: ClassVar[int] = 256
    layers: tuple[str, ...] = ("features", "logits")
    cheap: ClassVar[bool] = False
    rigid: ClassVar[bool] = False

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        self.weights_hash = tensors_hash(network.state_dict())
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move the network; returns this object."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def describe(self) -> dict[str, str | int]:
        """What the passport says of this extractor."""
        return {"name": self.name, "weights_hash": self.weights_hash, "dim": self.dim, "resize": self.resize}

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise UserError unless images of shape (..., height, width, channels) can be fed to this network."""
        height, width, channels = shape[-3:]
        if channels not in {1, self.channels}:
            raise UserError(
                f"The {self.name} extractor wants {self.channels}-channel images and the data set has {channels} "
                "channels: choose another metric."
            )
        if self.size is not None and (height, width) != (self.size, self.size):
            raise UserError(
                f"The {self.name} extractor takes {self.size}x{self.size} images and the data set has "
                f"{height}x{width}: choose another metric."
            )

    def width(self, layer: str, shape: tuple[int, ...]) -> int:
        """Numbers in `layer` for an image of shape (..., height, width, channels). Raises UserError if the network has no such layer."""
        if layer not in self.layers:
            raise UserError(f"The {self.name} extractor gives {' and '.join(self.layers)}, not {layer}: choose another metric.extractor.")
        return self.outputs(torch.zeros(1, *shape[-3:], dtype=torch.uint8))[layer].shape[1]

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """From uint8 [n, c, h, w] on the network's device, c its channels, to what the network takes."""

    @torch.no_grad()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Every layer [n, ...] by name, float32, of uint8 images [n, h, w, c] on any device.

        Autocast is switched off: called from a bf16 training loop the answer is the same. Raises ValueError for images
        that are not uint8 [n, h, w, c], and UserError for a size or number of channels that does not fit.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"Images must be uint8 [n, h, w, c], not {images.dtype} of shape {tuple(images.shape)}.")
        self.check(images.shape)
        outputs = []
        with torch.autocast(self.device.type, enabled=False):
            for chunk in images.split(self.batch):
                chunk = chunk.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                outputs.append(self.network(self.prepare(chunk.expand(-1, self.channels, -1, -1))))
        return {name: torch.cat(parts) for name, parts in zip(self.layers, zip(*outputs, strict=True), strict=False)}

    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, dim]; see `outputs`."""
        return self.outputs(images)["features"]
