"""The codec of float data: numbers of any scale become numbers of mean 0 and deviation 1."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffusion.support.errors import UserError
from diffusion.support.ranges import Checked, Few, Finite
from diffusion.typing import Noise


@lru_cache(maxsize=16)
def on_device(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers on a device, copied there once: a copy in each training step would wait for the device."""
    return torch.tensor(numbers, dtype=dtype, device=device)


@dataclass(frozen=True)
class Standardised(Checked):
    """x_0 = (y - mean) / std of float data y: vectors [b, d], or arrays [b, h, w, c], which become [b, c, h, w].

    mean and std have a number for each channel, the data's last dimension. Raises ValueError for a std that is not above 0."""

    data_shape: Sequence[Few] | None = None
    mean: Sequence[Finite] | None = None
    std: Sequence[Finite] | None = None

    range: ClassVar[None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std is not None and not all(s > 0 for s in self.std):
            raise ValueError(f"codec.std={list(self.std)} should be above 0: a channel that never changes cannot be standardised.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x_0: (d,), or (channels, height, width). Raises ValueError while the data's shape is not known."""
        if self.data_shape is None:
            raise ValueError("The shape of x_0 is not known: say Standardised(data_shape=(d,), mean=..., std=...).")
        return (self.data_shape[-1], *self.data_shape[:-1])

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise ValueError("Standardised needs the data's mean and std.")
        return on_device(tuple(self.mean), like.device), on_device(tuple(self.std), like.device)

    def encode(self, batch: Tensor, noise: Noise | None = None) -> Tensor:
        """float [b, ..., c] -> float32 [b, c, ...]."""
        y = batch.to(torch.float32)
        mean, std = self._scale(y)
        return ((y - mean) / std).movedim(-1, 1)

    def decode(self, x: Tensor) -> Tensor:
        """float [b, c, ...] -> float32 [b, ..., c], in the data's units."""
        y = x.to(torch.float32).movedim(1, -1)
        mean, std = self._scale(y)
        return (y * std + mean).contiguous()

    def sized(self, height: int, width: int) -> Self:
        """The same for arrays of another size. Raises ValueError for vectors, which have none."""
        if len(self.shape) != 3:
            raise ValueError("Vectors have no height and width: leave both out.")
        return replace(self, data_shape=(height, width, self.shape[0]))

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set (`diffusion.data.ImageSet`), as plain data; mean and std in float64 over all of it.

        Raises UserError for pictures of 8 bits."""
        if data.images.dtype == "uint8":
            raise UserError(f"codec=standardised is for float data, and {data.name} holds pictures of 8 bits; say codec=pixels.")
        total = square = torch.zeros(data.images.shape[-1], dtype=torch.float64)
        count = 0
        for start in range(0, len(data.images), 4096):
            rows = torch.from_numpy(data.images[start : start + 4096]).double().flatten(0, -2)
            total, square, count = total + rows.sum(0), square + rows.square().sum(0), count + len(rows)
        mean = total / count
        found = {"mean": mean.tolist(), "std": (square / count - mean**2).clamp(min=0).sqrt().tolist()}
        for key in found:
            value = getattr(self, key)
            if value is not None and (not isinstance(value, list | tuple) or len(value) != data.images.shape[-1]):
                raise UserError(f"codec.{key}={value} should be a list of {data.images.shape[-1]} numbers, one for each channel.")
        said = {key: list(value) for key in found if (value := getattr(self, key)) is not None}
        return {"data_shape": list(data.images.shape[1:]), **found, **said}
