"""Grids: which times a sampler visits. `grid(schedule) -> times` [steps + 1] float64 on the CPU, descending, ending at 0.

On a discrete schedule the first three visit its knots, t = (i + 1)/T for step i = 0..T-1. Time stays on the CPU, so that a sampler's
decisions about it never wait for an accelerator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.schedules import Schedule

CONTINUOUS_STEPS = 1000  # a continuous schedule is cut into as many knots as DDPM has


def _knots(schedule: Schedule, steps: int) -> int:
    total = getattr(schedule, "num_timesteps", CONTINUOUS_STEPS)
    if not 1 <= steps <= total:
        raise ValueError(f"grid.steps={steps} is not between 1 and the schedule's {total} time steps.")
    return total


def _to_zero(times: Tensor) -> Tensor:
    return torch.cat([times, times.new_zeros(1)])


@dataclass(frozen=True)
class Leading:
    """Steps k * (T // steps) + offset (DDIM's repository, and diffusers' "leading"). It starts far from pure noise when steps are few."""

    steps: int = 50
    offset: int = 0

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        index = torch.arange(self.steps, dtype=torch.float64).flip(0) * (total // self.steps) + self.offset
        if self.offset < 0 or index[0] >= total:
            raise ValueError(f"grid.offset={self.offset} moves some of {self.steps} steps outside the schedule's {total}.")
        return _to_zero((index + 1) / total)


@dataclass(frozen=True)
class Trailing:
    """Steps T - k T/steps - 1, rounded: it starts at pure noise (Lin et al. 2305.08891, table 2). The default."""

    steps: int = 50

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        index = (total - torch.arange(self.steps, dtype=torch.float64) * total / self.steps).round() - 1
        return _to_zero((index + 1) / total)


@dataclass(frozen=True)
class Linspace:
    """Evenly spaced steps from T - 1 to 0, both included (IDDPM's repository); `rounded` to whole steps or fractional."""

    steps: int = 50
    rounded: bool = True

    def __call__(self, schedule: Schedule) -> Tensor:
        total = _knots(schedule, self.steps)
        # numpy's arithmetic and not torch.linspace, whose rounding error sends some ties, such as 14.5, to the other whole step
        index = torch.arange(self.steps, dtype=torch.float64).flip(0) * ((total - 1) / max(1, self.steps - 1))
        index[0] = total - 1
        return _to_zero(((index.round() if self.rounded else index) + 1) / total)
