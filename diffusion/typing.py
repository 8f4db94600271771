"""Names of shapes, and the one function that lines a per-sample number up with a batch of images."""

from collections.abc import Callable

import torch
from torch import Tensor

Images = Tensor  # [b, c, h, w] float, in the model's space (pixels in [-1, 1], or latents)
Pixels = Tensor  # [b, h, w, c] uint8
Time = Tensor  # [] or [b] float64 in [0, 1]; 0 is data, 1 is noise
Noise = Callable[[Tensor], Tensor]  # like torch.randn_like


def expand(value: Tensor, x: Tensor) -> Tensor:
    """Shape `value` [b] as [b, 1, ..., 1] so that it multiplies `x` [b, ...], in x's dtype.

    A 0-d value is returned as it is: torch treats it as a scalar of x's dtype, on any device and with no copy to it."""
    if value.ndim == 0:
        return value
    return value.to(x).reshape(value.shape + (1,) * (x.ndim - value.ndim))


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first: [b, ...] -> [b]."""
    return torch.flatten(x, 1).mean(1)
