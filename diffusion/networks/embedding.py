"""The embeddings of time and condition, made once in each call of a network and given to every block."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class Given(NamedTuple):
    """What every block of a network is given besides the image or vector.

    embedding [b, e]: the sum of the time's embedding and the class's, or that of a pooled context, after its SiLU.
    classes [b, e]: that of the class or the pooled context alone, after its SiLU; `embedding` in a network that has no such thing.
    context [b, n, d]: the sequence that cross-attention looks at, or None."""

    embedding: Tensor
    classes: Tensor
    context: Tensor | None = None


UNTOLD = Given(torch.empty(0), torch.empty(0))
"""What the blocks of a network are given that sees no time and no condition."""


def sinusoidal(label: Tensor, channels: int, max_period: float = 10_000.0, shift: float = 1.0, cosines_first: bool = False) -> Tensor:
    """The sinusoidal embedding of Vaswani et al. 2017 (sec. 3.5) with DDPM's frequencies.

    omega_i = max_period^(-i / (n - shift)),  i = 0 .. n - 1,  n = channels / 2;  the sines stand first, then the cosines.

    It is computed in float32 at least, whatever the precision of autocast or the weights: bfloat16 holds 507 of the integers below 1000, so
    half of the timesteps would be mistaken for a neighbour.

    Args:
        label: [b], real-valued steps; fractions are allowed.
        channels: width of the embedding, even and at least 4.
        max_period: what the frequencies fall to is 1 / max_period, where shift is 1.
        shift: 1 for DDPM's frequencies; 0 for the Transformer's and Improved DDPM's.
        cosines_first: the other order of the two halves, as Improved DDPM has it.

    Returns:
        [b, channels], float32, or float64 for a float64 label.
    """
    dtype = torch.promote_types(label.dtype, torch.float32)
    half = channels // 2
    index = torch.arange(half, dtype=dtype, device=label.device)
    # Made here and not kept in a buffer, because module.to(bfloat16) would round a buffer.
    frequencies = torch.exp(index * (-math.log(max_period) / (half - shift)))
    angles = label.to(dtype)[:, None] * frequencies
    halves = [angles.sin(), angles.cos()]
    return torch.cat(halves[::-1] if cosines_first else halves, dim=-1)


class TimeEmbedding(nn.Module):
    """A two-layer perceptron on the sinusoidal embedding (DDPM, app. B): [b] -> [b, embedding_channels].

    shift, cosines_first: see `sinusoidal`, which is given the label times `label_scale`."""

    def __init__(
        self, channels: int, embedding_channels: int, shift: float = 1.0, cosines_first: bool = False, label_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.channels, self.shift, self.cosines_first, self.label_scale = channels, shift, cosines_first, label_scale
        self.hidden = nn.Linear(channels, embedding_channels)
        self.out = nn.Linear(embedding_channels, embedding_channels)

    def features(self, label: Tensor) -> Tensor:
        """[b] -> [b, channels], in float32 at least."""
        return sinusoidal(label * self.label_scale, self.channels, shift=self.shift, cosines_first=self.cosines_first)

    def forward(self, label: Tensor, told: Tensor | None = None) -> Tensor:
        """label [b]; `told` [b, channels] or [channels] is added to the features -> [b, embedding_channels]."""
        features = self.features(label).to(self.hidden.weight.dtype)
        return self.out(silu(self.hidden(features if told is None else features + told)))


class FourierTimeEmbedding(TimeEmbedding):
    """The perceptron on Gaussian Fourier features (Tancik et al. 2020; SDE app. C): sines and cosines of 2 pi w label, w ~ N(0, scale^2).

    The w are drawn once and not trained. `channels` of them make 2 channels features.
    """

    bits: Tensor

    def __init__(self, channels: int, embedding_channels: int, scale: float) -> None:
        super().__init__(2 * channels, embedding_channels)
        # Kept by their bits as integers, because module.to(bfloat16) would round a buffer of floats.
        self.register_buffer("bits", (scale * torch.randn(channels)).view(torch.int32))

    def features(self, label: Tensor) -> Tensor:
        dtype = torch.promote_types(label.dtype, torch.float32)
        angles = label.to(dtype)[:, None] * (2 * math.pi * self.bits.view(torch.float32).to(dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


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


class ConditionedNetwork(nn.Module):
    """A network called as network(x_t, label, cond) -> its raw prediction [b, out_channels, ...], of

        x_t: [b, in_channels, h, w], the noisy image, or [b, in_channels], the noisy vector, as the denoiser scales it;
        label: [b] float, the step: 0 .. T - 1 for a discrete schedule, whatever number stands for the time else;
        cond: [b] long, the classes, of which a negative one is the null class; or [b, n, context_channels] float, the context, of
            which zeros are the null; None is the null for all.

    A condition of the other kind raises ValueError. This base class holds the time embedding, and the class embedding or the width of the
    context; `given` makes of (label, cond) what the blocks get.

    Args:
        time: the time embedding, to embedding_channels.
        embedding_channels: width of the time and class embedding.
        num_classes: number of classes, to which a learned null class is added; 0 for none.
        context_channels: width of the vectors of a context sequence; 0 for none.
        pooled: the context's first vector, which stands for the whole of it, is also added to the time embedding, by a linear layer.
        class_first: the class is added to the time's features, before the perceptron, instead of to the time embedding.

    Raises:
        ValueError: if both classes and a context are asked for, or `pooled` without a context.
    """

    def __init__(
        self,
        time: TimeEmbedding,
        embedding_channels: int,
        num_classes: int = 0,
        context_channels: int = 0,
        pooled: bool = False,
        class_first: bool = False,
    ) -> None:
        super().__init__()
        if num_classes and context_channels:
            raise ValueError("A network's condition is a class or a context: set num_classes=0 or context_channels=0.")
        if pooled and not context_channels:
            raise ValueError("pooled=true adds a vector of the context to the time: set context_channels too.")
        self.time, self.class_first = time, class_first
        self.classes = ClassEmbedding(num_classes, time.channels if class_first else embedding_channels) if num_classes else None
        self.context_channels, self.pooled = context_channels, pooled
        self.pool = nn.Linear(context_channels, embedding_channels, bias=False) if pooled else None

    def given(self, label: Tensor, cond: Tensor | None) -> Given:
        """label [b]; cond [b] long, the classes, or [b, n, context_channels] float, the context, or None, the null of either.

        Raises ValueError if the condition is not of the network's kind."""
        if self.classes is not None and self.class_first:
            time = self.time(label, self.classes(cond))
            return Given(silu(time), silu(time))
        time = self.time(label)
        if self.context_channels:
            context = self._context(cond, time)
            if self.pool is None:
                return Given(silu(time), silu(time), context)
            whole = self.pool(context[:, 0])
            return Given(silu(time + whole), silu(whole), context)
        if self.classes is not None:
            classes = self.classes(cond).expand_as(time)
            return Given(silu(time + classes), silu(classes))
        if cond is not None:
            raise ValueError(
                "This network is unconditional (num_classes=0) but was given a condition: set num_classes or context_channels."
            )
        return Given(silu(time), silu(time))

    def _context(self, cond: Tensor | None, like: Tensor) -> Tensor:
        if cond is None:
            return like.new_zeros(len(like), 1, self.context_channels)
        if cond.ndim != 3 or cond.shape[-1] != self.context_channels or not cond.is_floating_point():
            found = f"{cond.dtype} of shape {list(cond.shape)}".removeprefix("torch.")
            raise ValueError(f"A context is [batch, n, {self.context_channels}] of floats (context_channels), and this one is {found}.")
        return cond.to(like.dtype)
