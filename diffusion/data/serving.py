"""How a training set is served, and how x_0 is made of what is served: the items as the data hold them, or encoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion.data.base import Dataset
from diffusion.data.cache import Chunk, ImageSet, open_cached
from diffusion.data.stream import flip
from diffusion.support.progress import bar
from diffusion.typing import Codec, Noise


class Serving(Protocol):
    """The contract; see above. The first time that items are asked for may take long."""

    def items(self, data: ImageSet) -> np.ndarray:
        """What is served of a data set, [n, ...], its items in their order."""

    def x0(self, items: Tensor, uniform: Tensor | None, noise: Noise) -> Tensor:
        """x_0 [b, ...] of a batch of what is served, each mirrored left to right where `uniform` [b] in [0, 1), if it is given, is below
        1/2; what is random about it drawn by `noise`."""


@dataclass(frozen=True)
class Plain:
    """The items as the data hold them, encoded by `codec` in each step."""

    codec: Codec

    def items(self, data: ImageSet) -> np.ndarray:
        return data.images

    def x0(self, items: Tensor, uniform: Tensor | None, noise: Noise) -> Tensor:
        return self.codec.encode(items if uniform is None else flip(items, uniform), noise)


@dataclass(frozen=True)
class Posteriors:
    """The mean and the log-variance of each picture's latents, encoded once: float32 [n, k, 2, *codec.shape], k = 2 where training mirrors
    pictures, the second being those of the mirrored picture, which are not the mirrored moments.

    They have a cache in `folder` of their own, see `open_cached`, whose name depends on the pictures, the autoencoder's weights and k. They
    are made on `device`, and drawn from in each step, so that no two epochs see the same latents."""

    codec: Any  # an Autoencoder, or what has its `moments`, `draw`, `slices` and `weights`
    flip: bool
    folder: Any
    device: str | torch.device = "cpu"

    def items(self, data: ImageSet) -> np.ndarray:
        return open_cached(Encoded(self, data)).images  # type: ignore[arg-type]  # it has what is asked of a data set

    def x0(self, items: Tensor, uniform: Tensor | None, noise: Noise) -> Tensor:
        plain = items[:, 0]
        if uniform is None:
            return self.codec.draw(plain, noise)
        return self.codec.draw(torch.where(uniform[:, None, None, None, None] < 0.5, items[:, 1], plain), noise)


@dataclass(frozen=True)
class Encoded:
    """The moments of a data set's pictures, as `open_cached` asks for a data set."""

    serving: Posteriors
    data: ImageSet

    dtype: ClassVar[str] = "float32"
    num_classes: ClassVar[int] = 0  # what is known of the pictures stays with them
    captioned: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"{self.data.name}-latents"

    @property
    def split(self) -> str:
        return self.data.split

    @property
    def cache(self) -> Any:
        return self.serving.folder

    @property
    def shape(self) -> tuple[int, ...]:
        return (1 + self.serving.flip, 2, *self.serving.codec.shape)

    def key(self) -> Any:
        """Everything that determines the moments, but for the device's rounding."""
        return [self.data.sha256, self.serving.codec.weights, self.shape]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        """The moments, `codec.slices` pictures at a time."""
        codec = self.serving.codec

        def chunks() -> Iterator[Chunk]:
            starts = range(0, len(self.data), codec.slices)
            for start in bar(starts, f"encoding {len(self.data):,} pictures", len(starts)):
                pictures = torch.from_numpy(self.data.images[start : start + codec.slices]).to(self.serving.device)
                views = [pictures, pictures.flip(2)][: self.shape[0]]
                yield torch.stack([codec.moments(view) for view in views], 1).float().cpu().numpy(), None

        return f"{self.data.name} by the autoencoder {codec.weights}", chunks()


def served(codec: Codec, dataset: Dataset, device: str | torch.device = "cpu") -> Serving:
    """How this data set is served to a model with this codec; what is to be encoded once is encoded on `device`."""
    return Posteriors(codec, dataset.flip, dataset.cache, device) if getattr(codec, "cached", False) else Plain(codec)
