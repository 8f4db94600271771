"""How t is drawn in training: `times(n, schedule, device) -> Draw(t, weight)`; the weight keeps the loss an unbiased mean over t."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.schedules import Schedule


class Draw(NamedTuple):
    """t [n] float64 in (0, 1] and the importance weight 1 / (T p(t)) [n] of each sample's loss."""

    t: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Uniform:
    """Every knot of a discrete schedule is equally likely (DDPM alg. 1); in continuous time t is uniform on (0, 1]."""

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        total = getattr(schedule, "num_timesteps", None)
        if total is None:
            t = 1 - torch.rand(n, dtype=torch.float64, device=device)
        else:
            t = torch.randint(1, total + 1, (n,), device=device).double() / total
        return Draw(t, torch.ones(n, device=device))
