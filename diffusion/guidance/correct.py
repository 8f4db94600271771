"""Limits to guidance: clipping, dynamic thresholds, rescaling, an interval of noise levels."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.guidance.base import Guidance, lerp_estimates, of_x0
from diffusion.support.ranges import Finite, Fraction, Level, NonNegative, Share
from diffusion.typing import Codec, Denoise, expand


@dataclass(frozen=True)
class Clip(Guidance):
    """x_0 clipped to [low, high], and eps = (x_t - alpha x_0) / sigma derived again from it. A bound that is None is that of the codec's
    range; without a codec, of [-1, 1].

    Raises ValueError for a codec without a range, as one into latents or of vectors is."""

    limits: ClassVar[bool] = True

    low: Finite | None = None
    high: Finite | None = None
    codec: Codec | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        span = (-1.0, 1.0) if self.codec is None else self.codec.range
        for name, bound in zip(("low", "high"), span or (None, None), strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, bound)
        if self.low is None or self.high is None:
            raise ValueError(f"{type(self).__name__} needs a range, and x_0 has none in this space; leave the stage out of guidance.")

    @property
    def unguided(self) -> Denoise:
        """Clipping is not guidance, so it stays."""
        return replace(self, denoiser=super().unguided)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.clipped(self.denoiser(x_t, t, cond), x_t, t)

    def clipped(self, estimate: Estimate, x_t: Tensor, t: Tensor) -> Estimate:
        """The estimate with x_0 in range."""
        return of_x0(self.schedule, self.limit(estimate.x0), x_t, t, estimate.frac)

    def limit(self, x0: Tensor) -> Tensor:
        """x_0 in range."""
        return x0.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold(Clip):
    """x_0 clipped to [-q, q] and divided by q, where q is the `percentile` (0 to 1) of each sample's |x_0|, at least 1 (Imagen 2205.11487,
    sec. 2.3), for data in [-1, 1]; with low and high, about their middle. eps is derived again."""

    percentile: Fraction = 0.995

    def limit(self, x0: Tensor) -> Tensor:
        assert self.low is not None and self.high is not None  # see Clip
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        x = (x0 - middle) / half
        q = expand(torch.quantile(x.flatten(1).abs(), self.percentile, dim=1).clamp(min=1), x)
        return middle + half * x.clamp(-q, q) / q


@dataclass(frozen=True)
class Rescale(Guidance):
    """The guided estimate brought back towards the conditional one's contrast (Lin et al. 2305.08891, eq. 14 to 16), in x_0, per sample:
    phi x_0 std(x_0(c)) / std(x_0) + (1 - phi) x_0, and eps derived again. The paper rescales the output of its v-predictor, which is the
    same at alpha = 0, where it matters most. Raises ValueError around a denoiser that is not guided."""

    limits: ClassVar[bool] = True

    denoiser: Guidance
    phi: Share = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.denoiser, Guidance):
            raise ValueError("Rescale acts on a guided model: put it after a guidance, as in guidance=[cfg,rescale].")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.pair(x_t, t, cond)[0]

    def pair(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        guided, plain = self.denoiser.pair(x_t, t, cond)
        ratio = plain.x0.flatten(1).std(1) / guided.x0.flatten(1).std(1).clamp(min=1e-12)
        x0 = guided.x0 * expand(self.phi * ratio + 1 - self.phi, guided.x0)
        return of_x0(self.schedule, x0, x_t, t, guided.frac), plain


@dataclass(frozen=True)
class Interval(Guidance):
    """Guidance only where low < sigma/alpha <= high (Kynkaanniemi et al. 2404.07724, eq. 3); elsewhere the conditional model alone."""

    low: NonNegative = 0.0
    high: Level = float("inf")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        inside = self.inside(t)
        if inside.all():
            return self.denoiser(x_t, t, cond)
        plain = self.unguided(x_t, t, cond)
        return lerp_estimates(plain, self.denoiser(x_t, t, cond), expand(inside.to(x_t), x_t)) if inside.any() else plain

    def inside(self, t: Tensor) -> Tensor:
        """Whether t's noise level is in the interval."""
        alpha, sigma = self.schedule(t.double())
        level = sigma / alpha  # inf where alpha = 0
        return (self.low < level) & (level <= self.high)
