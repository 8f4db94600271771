"""Between 8-bit images and the space the model works in."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """The model works on pixels in [-1, 1]: x = u / 127.5 - 1."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [b, h, w, c] -> float32 [b, c, h, w], laid out channels-last in memory."""
        return images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """float [b, c, h, w] -> uint8 [b, h, w, c], to the nearest level; encode then decode changes no pixel."""
        return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
