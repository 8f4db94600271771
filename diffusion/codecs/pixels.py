"""The codec of 8-bit pictures: levels become numbers in an interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from diffusion.support.errors import UserError
from diffusion.support.ranges import Checked, Few, Finite
from diffusion.typing import Noise


@dataclass(frozen=True)
class Pixels(Checked):
    """The model works on pixels between low and high: x_0 = low + (high - low) u / 255 of a level u; by default u / 127.5 - 1.

    `data_shape` is a picture's (height, width, channels); encode and decode need none. Raises ValueError for high <= low."""

    data_shape: Sequence[Few] | None = None
    low: Finite = -1.0
    high: Finite = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"codec.low={self.low} should be below codec.high={self.high}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x_0: (channels, height, width). Raises ValueError while the pictures' shape is not known."""
        if self.data_shape is None:
            raise ValueError("The shape of x_0 is not known: say Pixels(data_shape=(height, width, channels)).")
        height, width, channels = self.data_shape
        return channels, height, width

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value of x_0."""
        return self.low, self.high

    def encode(self, batch: Tensor, noise: Noise | None = None) -> Tensor:
        """uint8 [b, h, w, c] -> float32 [b, c, h, w], contiguous: a network decides by its weights how the rest lies in memory."""
        return batch.permute(0, 3, 1, 2).contiguous().to(torch.float32) / (255 / (self.high - self.low)) + self.low

    def decode(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> uint8 [b, h, w, c], to the nearest level; encode then decode changes no pixel."""
        levels = 255 / (self.high - self.low)
        return (x * levels + (0.5 - self.low * levels)).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def sized(self, height: int, width: int) -> Self:
        """The same for pictures of another size."""
        return replace(self, data_shape=(height, width, self.shape[0]))

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set (`diffusion.data.ImageSet`), as plain data.

        Raises UserError if it does not hold pictures of 8 bits."""
        shape, dtype = data.images.shape[1:], data.images.dtype
        if dtype != "uint8" or len(shape) != 3:
            raise UserError(f"codec=pixels is for pictures of 8 bits, and {data.name} holds {dtype} {list(shape)}; say codec=standardised.")
        if self.data_shape is not None and list(self.data_shape) != list(shape):
            raise UserError(f"codec.data_shape={list(self.data_shape)}, and {data.name} holds {list(shape)}; leave it out.")
        return {"data_shape": list(shape)}
