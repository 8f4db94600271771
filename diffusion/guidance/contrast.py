"""Guidance away from a worse estimate: the model without its condition, or a worse model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.denoiser import Estimate, null
from diffusion.guidance.base import Guidance, lerp_estimates, place, same_space, same_texts
from diffusion.schedules import Schedule
from diffusion.support.ranges import Finite
from diffusion.typing import Codec, Conditions, Denoise, expand

Model = TypeVar("Model")


@dataclass(frozen=True)
class Unconditional(Guidance):
    """The model without its condition, inside a guidance that has one, such as a classifier on a model with no classes."""

    @property
    def unguided(self) -> Denoise:
        """Leaving the condition out is not guidance, so it stays."""
        return self

    def asks(self, conditions: Conditions) -> Conditions:
        if conditions.given:
            conditions.null(torch.empty(0))  # refused now by those that have none
        return super().asks(conditions)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.denoiser(x_t, t, None)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """eps = eps(null) + scale (eps(c) - eps(null)) (CFG eq. 6, whose w is scale - 1), both halves in one batched call.

    scale = 1 is the conditional model (one call's cost), 0 the unconditional one. `negative` takes the null condition's place: a condition
    that broadcasts to cond, or the words for one, such as a class, as `conditions` reads them. Raises ValueError when scale is not 1 and
    there is no condition to guide towards, and for words that `conditions` does not know."""

    scale: Finite = 1.0
    negative: Any = None
    conditions: Conditions | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.other  # words that `conditions` does not know are refused now

    def asks(self, conditions: Conditions) -> Conditions:
        if self.scale != 1 and not conditions.given:
            raise ValueError(f"guidance.scale={self.scale} needs a conditional model, and this one has no condition; set guidance.scale=1.")
        if self.scale != 1 and self.negative is None:
            conditions.null(torch.empty(0))  # refused now by those that have none
        return super().asks(conditions)

    def doubts(self, codec: Codec, limited: bool) -> Iterator[str]:
        if self.scale == 1 and self.negative is not None:
            yield f"guidance.negative={self.negative} does nothing at guidance.scale=1, the conditional model alone; raise it."
        if self.scale > 1 and codec.range is not None and not limited:
            yield f"guidance.scale={self.scale} takes x_0 out of the data's range, and nothing clips it: say guidance=[cfg,clip]."

    @cached_property
    def other(self) -> Tensor | None:
        """The negative condition, to be broadcast; None for the null condition. Words are read once: an encoder of text takes its time."""
        if self.negative is None or isinstance(self.negative, Tensor):
            return self.negative
        read = torch.as_tensor(self.negative) if self.conditions is None else self.conditions.parse(self.negative, "guidance.negative")
        if read.ndim and len(read) != 1:
            raise ValueError(f"guidance.negative={self.negative} should be one condition, for all images.")
        return read

    def strength(self, x_t: Tensor, t: Tensor) -> Tensor | float:
        """The scale at time t, a number or shaped to multiply x_t."""
        return self.scale

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.pair(x_t, t, cond)[0]

    def pair(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        return self.contrast(x_t, t, cond) if self.scale != 1 else (self.denoiser(x_t, t, cond),) * 2

    def contrast(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        """`pair` with both halves asked."""
        if cond is None:
            raise ValueError(f"guidance.scale={self.scale} needs a conditional model and a condition; set guidance.scale=1 for neither.")
        chosen = self.other
        nothing = null if self.conditions is None else self.conditions.null
        other = nothing(cond) if chosen is None else chosen.to(cond, non_blocking=True).expand_as(cond)
        both = self.denoiser(torch.cat([x_t, x_t]), t.repeat(2) if t.ndim else t, torch.cat([cond, other]))
        positive, negative = (Estimate(*half) for half in zip(*map(halves, both), strict=True))
        return lerp_estimates(negative, positive, self.strength(x_t, t)), positive


def halves(both: Tensor | None) -> tuple[Tensor | None, ...]:
    """The two halves of a batch; of None, two Nones."""
    return (None, None) if both is None else both.chunk(2)


@dataclass(frozen=True)
class CFGPlusPlus(ClassifierFree):
    """CFG++ (2406.08070, alg. 2): x_0 = x_0(null) + scale (x_0(c) - x_0(null)) with scale in [0, 1], noised again with eps(null).

    No denoiser does that, since its x_0 and eps would not add up to x_t. But for a first-order ODE step t -> s it equals classifier-free
    guidance of strength scale / (1 - alpha_t sigma_s / (alpha_s sigma_t)), so this guidance takes the grid, and is exact for DDIM(eta=0)
    and Euler. `grid` must be the sampler's; a time off it has the strength of the move it lies in. On the last move, to 0, the strength is
    `scale`; before, it is larger."""

    scale: Finite = 0.6
    grid: Callable[[Schedule], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is None:
            raise ValueError("CFGPlusPlus needs the sampler's grid: CFGPlusPlus(denoiser, grid=...).")
        if not 0 <= self.scale <= 1:
            raise ValueError(f"CFG++'s scale is between 0 and 1, not {self.scale}; a scale beyond 1 is ClassifierFree's (guidance=cfg).")

    def strength(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert self.grid is not None  # see __post_init__
        times, i = place(self.grid, self.schedule, t)
        start, end = self.schedule.log_snr(times[i]), self.schedule.log_snr(times[i - 1])
        return expand(self.scale / -torch.expm1((start - end) / 2), x_t)

    pair = ClassifierFree.contrast  # here a scale of 1 is not the conditional model
    doubts = Guidance.doubts


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """D = D_bad + weight (D - D_bad) (Karras et al. 2406.02507, eq. 3), D_bad a smaller or less trained model with the same condition.

    weight = 1 is the good model. Raises ValueError if the two models' noise schedules, codecs or text encoders differ."""

    bad: Denoise
    weight: Finite = 2.0
    codec: Codec | None = field(default=None, repr=False)
    conditions: Conditions | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        same_space(self.bad, self.codec, "Autoguidance's second model")
        same_texts(self.bad, self.conditions, "Autoguidance's second model")
        if self.bad.schedule != self.schedule:
            raise ValueError(f"Autoguidance's two models must share a noise schedule; they have {self.schedule} and {self.bad.schedule}.")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.denoiser(x_t, t, cond) if self.weight == 1 else self.pair(x_t, t, cond)[0]

    def pair(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        good, bad = self.denoiser(x_t, t, cond), at(self.bad, x_t)(x_t, t, cond)
        return lerp_estimates(bad, good, self.weight), good


def at(model: Model, x: Tensor) -> Model:
    """A second model on x's device: it is not part of the module that was moved there."""
    if isinstance(model, torch.nn.Module):
        model.to(x.device)  # in place
    return model
