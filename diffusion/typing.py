"""The Protocols by which the floors know each other, and the functions that line per-sample numbers up with a batch of images."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusion.denoiser import Estimate
    from diffusion.schedules import Schedule

Noise = Callable[[Tensor], Tensor]
"""`noise(x)` is standard normal noise of x's shape, dtype and device, like torch.randn_like(x)."""


class Network(Protocol):
    """Any torch module called as `network(x, label, cond)`; a Denoiser makes an estimate of its output.

    x [b, ...] is x_t, scaled by the parameterization; label [b] float32 is `schedule.label(t)`; cond [b, ...] is the condition: int64
    classes [b], -1 for the null class, or a float context [b, n, d], or None for the null condition of all."""

    def __call__(self, x: Tensor, label: Tensor, cond: Tensor | None = None, /) -> Tensor:
        """The output [b, ...], read by the parameterization; with a learned variance it has twice the channels of x."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights; none for a network without any."""


class Denoise(Protocol):
    """The callable that samplers take: a Denoiser, a guidance around one, an exact denoiser, or any other that knows its schedule."""

    @property
    def schedule(self) -> "Schedule":
        """The noise schedule: x_t = alpha_t x_0 + sigma_t eps."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, /) -> "Estimate":
        """The estimate of x_0 and eps, each of x_t's shape, from x_t [b, ...], t [] or [b] in (0, 1], and cond [b, ...] or None."""


class Codec(Protocol):
    """The map between the data and the space that a denoiser works in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x_0: (channels, height, width) of pictures, (d,) of vectors."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The least and the greatest value of x_0; None where it has no bounds."""

    def encode(self, batch: Tensor, noise: Noise | None = None) -> Tensor:
        """x_0 [b, *shape], float, of a batch of the data: uint8 pictures [b, h, w, c], or float items [b, ..., c].

        A codec whose x_0 is random, as an autoencoder's posterior is, draws it by `noise`; without, it gives the mean."""

    def decode(self, x: Tensor) -> Tensor:
        """The data that x [b, *shape] stands for, in the form and units of the data set; the inverse of `encode`, up to rounding."""

    def sized(self, height: int, width: int) -> "Codec":
        """The codec of pictures of this size. Raises ValueError for data that have no height and width."""

    def facts(self, data: Any) -> dict[str, Any]:
        """The codec's settings that follow from a data set (`diffusion.data.ImageSet`), as plain data by name."""


class Rows(Protocol):
    """A tensor [n, ...], or what is read like one: `rows[indices]` is a tensor [b, ...], of a slice or of numbers [b]."""

    def __getitem__(self, indices: Any, /) -> Any:
        """The rows with these numbers."""

    def __len__(self) -> int:
        """n."""

    @property
    def nbytes(self) -> int:
        """The memory that they take."""

    def to(self, device: Any, /) -> Any:
        """The same on this device."""


class Conditions(Protocol):
    """The conditions that a model knows: how the condition [b, ...] of a batch is made from labels, from images' numbers, or from words."""

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where conditions are not classes, or there are none."""

    @property
    def given(self) -> bool:
        """Whether there is a condition at all."""

    @property
    def period(self) -> int:
        """Images i and i + period have the same condition; 1 where conditions are drawn at random or there are none."""

    def network(self) -> dict[str, Any]:
        """The arguments about the condition with which a network is built, by name."""

    def around(self, network: nn.Module) -> nn.Module:
        """The network, behind what the conditions train with it, such as an encoder of text. Raises UserError for one that does not look at
        such conditions."""

    def labels(self, data: Any) -> Rows | None:
        """What `of` is given of the items of a data set (`diffusion.data.ImageSet`), [n, ...], on the CPU; None if there is nothing."""

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions [b, ...] of training images with these labels [b, ...], or None; None is no condition."""

    def ask(self, indices: Tensor) -> Tensor | None:
        """The conditions [b, ...] of the images with these numbers [b], int64, in a grid or a metric; None is no condition."""

    def names(self, indices: Tensor) -> list[str] | None:
        """What the images with these numbers [b] are asked for, in words; None where a number says it, or nothing is asked for."""

    def null(self, cond: Tensor) -> Tensor:
        """The null condition, of which classifier-free training and guidance are, for each of cond [b, ...]; on its device."""

    def parse(self, words: Any, key: str = "the condition") -> Tensor:
        """The conditions [k, ...] for the command line's words, one word or a list of k. Raises UserError for words it does not know."""

    def describe(self) -> dict[str, Any] | None:
        """How images get their conditions, as plain data for a passport; None for the usual way, the classes in turn."""

    def facts(self, data: Any) -> dict[str, Any]:
        """The conditions' settings that follow from a data set (`diffusion.data.ImageSet`), as plain data by name."""


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
