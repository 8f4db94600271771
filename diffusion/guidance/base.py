"""The contract of guidance: a frozen wrapper around a denoiser, called like it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked
from diffusion.typing import Codec, Conditions, Denoise, device_of, expand


@dataclass(frozen=True)
class Guidance(Checked, ABC):
    """The contract: a frozen wrapper with the schedule and device of the denoiser inside.

    `limits` says that it keeps x_0 near its range."""

    limits: ClassVar[bool] = False

    denoiser: Denoise

    @property
    def schedule(self) -> Schedule:
        """The innermost denoiser's schedule."""
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        """The innermost denoiser's device; the CPU if it does not say."""
        return device_of(self.denoiser)

    @property
    def fixed_variance(self) -> str | None:
        """The variance that the innermost denoiser's bound was trained with, if it was with one."""
        return getattr(self.denoiser, "fixed_variance", None)

    @property
    def unguided(self) -> Denoise:
        """The conditional model that is guided: what is left where the guidance is switched off."""
        return getattr(self.denoiser, "unguided", self.denoiser)

    def asks(self, conditions: Conditions) -> Conditions:
        """The conditions of guided images, where the model's own are `conditions`. Raises ValueError if this guidance needs others."""
        return self.denoiser.asks(conditions) if isinstance(self.denoiser, Guidance) else conditions

    def doubts(self, codec: Codec, limited: bool) -> Iterator[str]:
        """A sentence for each setting that does nothing, or harms, without a word; `limited` says that some stage limits x_0."""
        yield from ()

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """The guided estimate."""

    def pair(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        """(the guided estimate, the conditional one); a guidance that computes both overrides this and saves a call."""
        return self(x_t, t, cond), self.unguided(x_t, t, cond)


def same_space(second: object, codec: Codec | None, what: str) -> None:
    """Raises ValueError if a second model is of a run whose x_0 is encoded otherwise than this one's; the size of images may differ."""
    theirs = getattr(second, "codec", None)
    if codec is None or theirs is None:
        return
    mine, other = (c.sized(1, 1) if len(c.shape) == 3 else c for c in (codec, theirs))
    if mine != other:
        raise ValueError(f"{what} was trained in another space, {theirs}, than the model, {codec}; train it again with the model's codec.")


def place(grid: Callable[[Schedule], Tensor], schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(the grid's times, ascending, and i, of t's shape): t lies in the move from times[i] to times[i - 1]."""
    times = grid(schedule).flip(0).to(t.device, non_blocking=True)
    i = torch.searchsorted(times, t.contiguous() * (1 - 1e-9))  # rounding keeps a grid time on the grid
    return times, i.clamp(1, len(times) - 1)


def same_texts(second: object, conditions: Conditions | None, what: str) -> None:
    """Raises ValueError if a second model is of a run whose texts are encoded otherwise than this one's, so that it would misread them."""
    mine, theirs = (getattr(of, "encoder", None) for of in (conditions, getattr(second, "conditions", None)))
    if mine is not None and (theirs is None or mine.describe() != theirs.describe()):
        raise ValueError(f"{what} was trained with another text encoder than the model; train it again with the model's conditions.")


def of_x0(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, frac: Tensor | None) -> Estimate:
    """The estimate with this x_0: eps = (x_t - alpha x_0) / sigma derived again from it."""
    alpha, sigma = (expand(v, x_t) for v in schedule(t))
    return Estimate(x0, (x_t - alpha * x0) / sigma, frac)


def lerp_estimates(start: Estimate, end: Estimate, scale: Tensor | float) -> Estimate:
    """start + scale (end - start), in x_0 and in eps; the variance is end's. `scale` is a number or shaped to multiply x_t."""
    x0, eps = (a + scale * (b - a) for a, b in ((start.x0, end.x0), (start.eps, end.eps)))
    return Estimate(x0, eps, end.frac)
