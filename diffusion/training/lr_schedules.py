"""Learning-rate schedules: a function of the optimizer step that multiplies the learning rate."""

from dataclasses import dataclass
from math import cos, pi, sqrt

from diffusion.support.ranges import Checked, Count, Natural


@dataclass(frozen=True)
class Constant:
    """1 always."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Warmup(Checked):
    """Linear from 1/steps to 1 over `steps` steps, then 1 (DDPM app. B: 5,000 steps)."""

    steps: Natural = 500

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.steps))


@dataclass(frozen=True)
class Cosine(Checked):
    """Linear warm-up, then half a cosine down to 0 at step `total`."""

    total: Count
    warmup: Natural = 500

    def __call__(self, step: int) -> float:
        progress = min(1.0, max(0.0, (step - self.warmup) / max(1, self.total - self.warmup)))
        return Warmup(self.warmup)(step) * 0.5 * (1 + cos(pi * progress))


@dataclass(frozen=True)
class InverseSqrt(Checked):
    """Linear warm-up, 1 up to step `reference`, then sqrt(reference / step) (EDM2 2312.02696, eq. 67): no end has to be known."""

    reference: Count
    warmup: Natural = 500

    def __call__(self, step: int) -> float:
        return Warmup(self.warmup)(step) / sqrt(max(1.0, (step + 1) / self.reference))
