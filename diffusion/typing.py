"""What passes between the floors: the Protocols, and the one function that lines a per-sample number up with a batch of images."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusion.denoiser import Estimate
    from diffusion.schedules import Schedule

Noise = Callable[[Tensor], Tensor]  # like torch.randn_like


class Network(Protocol):
    """What a denoiser is made of: `network(x, label, cond)`, any torch module called so.

    x [b, ...] is x_t times a factor of its time; label [b] float32, `schedule.label(t)`; cond [b, ...], or None without a condition."""

    def __call__(self, x: Tensor, label: Tensor, cond: Tensor | None = None, /) -> Tensor:
        """The output [b, ...], whose meaning is the parameterization's."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, none where there is nothing to train."""


class Denoise(Protocol):
    """What samplers call: a denoiser, a guidance around one, an exact denoiser, or any callable that knows its schedule."""

    @property
    def schedule(self) -> "Schedule":
        """The noise that x_t holds."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, /) -> "Estimate":
        """The estimate of x_0 and eps at x_t [b, ...] and t [] or [b] in (0, 1]; cond [b, ...], or None."""


class Codec(Protocol):
    """Between what people see and the space that a denoiser works in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x_0."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The least and the greatest value of x_0; None where it has no bounds."""

    def encode(self, batch: Tensor) -> Tensor:
        """x_0 [b, *shape] float of a batch of the data, such as uint8 [b, h, w, c]."""

    def decode(self, x: Tensor) -> Tensor:
        """What a person or a metric sees of x [b, *shape], such as uint8 [b, h, w, c]."""

    def sized(self, height: int, width: int) -> "Codec":
        """The codec of pictures of this size."""

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set, as plain data."""


class Conditions(Protocol):
    """What a model may be asked for: how a condition [b, ...] comes from the data, from an image's number, or from words.

    The null condition of any of them is `diffusion.denoiser.null`."""

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 where conditions are not classes, or there are none."""

    @property
    def given(self) -> bool:
        """Whether there is a condition at all."""

    @property
    def period(self) -> int:
        """Image i is asked for the same as image i + period; 1 where that is left to chance, or nothing is asked for."""

    def network(self) -> dict[str, int]:
        """What a network is told of the condition when it is built, by the names of its arguments."""

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of a batch with these labels, for training."""

    def ask(self, indices: Tensor) -> Tensor | None:
        """The conditions of the images with these numbers [b] in a grid or a metric."""

    def parse(self, words: Any) -> Tensor:
        """The conditions that the command line's words stand for."""

    def describe(self) -> dict[str, Any] | None:
        """What a number depends on, as plain data for a passport; None for the kinds in turn."""

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set, as plain data."""


def device_of(denoiser: Denoise) -> torch.device:
    """The device that a denoiser works on: its `device`, or the CPU if it has none."""
    return getattr(denoiser, "device", torch.device("cpu"))


def expand(value: Tensor, x: Tensor) -> Tensor:
    """Shape `value` [b] as [b, 1, ..., 1] so that it multiplies `x` [b, ...], in x's dtype.

    A 0-d value is returned as it is: torch treats it as a scalar of x's dtype, on any device and with no copy to it."""
    if value.ndim == 0:
        return value
    return value.to(x).reshape(value.shape + (1,) * (x.ndim - value.ndim))


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first: [b, ...] -> [b]."""
    return torch.flatten(x, 1).mean(1)
