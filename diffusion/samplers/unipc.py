"""UniPC: a multistep predictor, corrected by the estimate at its own end at no further call."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import Known, Quadrature, constant, exponential, log_ratio, weighted_sum, weights
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Order
from diffusion.typing import Denoise, Noise


def bh1(delta: Tensor, k: int) -> Tensor:
    """B(h) = h: two estimates are averaged with half the slope, times h/(1 - e^-h)."""
    return torch.stack([torch.ones_like(delta), -delta / torch.expm1(-delta) / 2]) if k == 2 else exponential(delta, k)


def bh2(delta: Tensor, k: int) -> Tensor:
    """B(h) = e^h - 1: two estimates are averaged with half the slope."""
    return constant(delta, k) if k == 2 else exponential(delta, k)


@dataclass(frozen=True)
class UniPC(Checked):
    """UniPC-p (2302.04867, alg. 1 and 2, x_0 prediction): UniP of order p, then UniC with the new estimate, which makes the order p + 1.

    Both are the polynomial in lambda through their estimates, with UniPC's short cut for two of them, `variant` bh1 (B(h) = h) or bh2
    (B(h) = e^h - 1). The new estimate is made at the predicted x, so that a step costs one call. The order falls towards the end, to 1
    on the move to sigma = 0.
    Raises ValueError for another variant or an order outside 1..3."""

    order: Order = 2
    variant: str = "bh2"

    choices: ClassVar = {f.__name__: f for f in (bh1, bh2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in self.choices:
            raise ValueError(f"sampler.variant={self.variant} is not one of {', '.join(self.choices)}.")

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule, start = denoise.schedule, x
        past: deque[Known] = deque(maxlen=self.order)
        used: list[Known] = []
        for left, (t, s) in zip(range(len(times) - 1, 0, -1), pairwise(times), strict=True):
            estimate = denoise(x, t)
            if used:  # UniC: the move that led here once more
                x = self.move(start, [*used, (t, estimate)], t, schedule)
            past.appendleft((t, estimate))
            start, used = x, list(past)[:left]
            x = self.move(start, used, s, schedule)  # UniP
            yield State(x, estimate.x0, s)

    def move(self, x: Tensor, known: Sequence[Known], s: Tensor, schedule: Schedule) -> Tensor:
        """From known[0]'s time to s with the average of the x_0 in `known`."""
        moments: Quadrature = self.choices[self.variant]
        w = weights([-log_ratio(t, schedule) for t, _ in known], -log_ratio(s, schedule), moments)
        return step(x, weighted_sum(w, [estimate.x0 for _, estimate in known]), known[0][0], s, schedule)
