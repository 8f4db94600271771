"""What tells a network the time and the class: vectors added together and handed to every block."""

import math

import torch
from torch import Tensor, nn


def sinusoidal(label: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """The sinusoidal embedding of Vaswani et al. 2017 (sec. 3.5) with DDPM's frequencies.

    omega_i = max_period^(-i / (n - 1)),  i = 0 .. n - 1,  n = channels / 2;  the sines stand first, then the cosines.

    It is worked out in float32 at least, whatever autocast or the weights are in: bfloat16 holds 507 of the integers
    below 1000, so half of the timesteps would be mistaken for a neighbour.

    Args:
        label: [b], real-valued steps; fractions are allowed.
        channels: width of the embedding, even and at least 4.

    Returns:
        [b, channels], float32, or float64 for a float64 label.
    """
    dtype = torch.promote_types(label.dtype, torch.float32)
    half = channels // 2
    index = torch.arange(half, dtype=dtype, device=label.device)
    # Made here and not kept in a buffer, because module.to(bfloat16) would round a buffer.
    frequencies = torch.exp(index * (-math.log(max_period) / (half - 1)))
    angles = label.to(dtype)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """A two-layer perceptron on the sinusoidal embedding (DDPM, app. B): [b] -> [b, embedding_channels]."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(channels, embedding_channels)
        self.out = nn.Linear(embedding_channels, embedding_channels)

    def forward(self, label: Tensor) -> Tensor:
        embedding = sinusoidal(label, self.channels).to(self.hidden.weight.dtype)
        return self.out(nn.functional.silu(self.hidden(embedding)))


class ClassEmbedding(nn.Embedding):
    """A vector for each class and, in the last row, one for "no class" (the null of Ho & Salimans 2022, sec. 3.2).

    A negative label means null, and so does None. [b] long -> [b, embedding_channels].
    """

    def __init__(self, num_classes: int, embedding_channels: int) -> None:
        super().__init__(num_classes + 1, embedding_channels)
        self.null = num_classes

    def forward(self, cond: Tensor | None) -> Tensor:
        if cond is None:
            return self.weight[self.null]  # [embedding_channels]: broadcasts over the batch
        return super().forward(torch.where(cond < 0, self.null, cond))
