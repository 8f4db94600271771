"""Post-hoc EMA (Karras et al. 2312.02696, sec. 3): averages of any length, made after the training from a few snapshots.

The average with a power function's profile, p_gamma(i; n) ~ i^gamma over the steps i = 1..n, is updated by
shadow <- beta shadow + (1 - beta) weights, beta_n = (1 - 1/n)^(gamma + 1). Its length is stated as the profile's standard deviation
relative to the training's, std = sqrt((gamma + 1)/((gamma + 2)^2 (gamma + 3))).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn

from diffusion.support.ranges import Decay, Range
from diffusion.training.ema import EMA


def exponent(std: float) -> float:
    """gamma of a relative standard deviation: the positive root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2 (alg. 2).

    Raises ValueError outside (0, sqrt(1/12)), the latter that of equal weights."""
    if not 0 < std < 12**-0.5:
        raise ValueError(f"An average's relative length of {std} is outside (0, 0.2887), the latter that of equal weights.")
    low, high = 0.0, 1 / std  # the standard deviation falls with gamma, and is below 1/(gamma + 2)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > std**2 else (low, middle)
    return low


Length = Annotated[float, Range(above=0, below=0.2887)]  # see `exponent`


class Power(EMA):
    """The average with a power function's profile, of relative length `std`: as long a part of the training whenever that ends. A decay
    suits one length of training; this suits any."""

    def __init__(self, std: Length = 0.10) -> None:
        super().__init__(0.0)
        self.std, self.gamma = std, exponent(std)

    def describe(self) -> dict[str, Any]:
        return {"std": self.std}

    @property
    def decay(self) -> float:
        return (1 - 1 / (self.steps + 1)) ** (self.gamma + 1)


class PostHoc(EMA):
    """Beside a plain average, with which it samples, several power-function averages of relative lengths `stds`.

    The snapshots that `diffusion.average` needs are written by the callback that conf/ema/posthoc.yaml adds."""

    def __init__(self, decay: Decay = 0.9999, stds: Sequence[Length] = (0.05, 0.10)) -> None:
        super().__init__(decay)
        self.stds, self.averages = tuple(stds), [Power(std) for std in stds]

    def start(self, module: nn.Module) -> Self:
        """Begin at the module's weights; the first step's beta is 0, so that they have no part in a power-function average."""
        self.averages = [average.start(module) for average in self.averages]
        return super().start(module)

    def update(self, module: nn.Module) -> None:
        """Move every average."""
        super().update(module)
        for average in self.averages:
            average.update(module)

    def state_dict(self) -> dict:
        """Plain tensors and numbers."""
        return super().state_dict() | {"averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the averages' number, or the weights' names or shapes, are not these."""
        states = state.get("averages", [])
        if len(states) != len(self.averages):
            raise ValueError(f"The checkpoint holds {len(states)} post-hoc averages where ema.stds names {len(self.averages)}.")
        super().load_state_dict(state)
        for average, theirs in zip(self.averages, states, strict=True):
            average.load_state_dict(theirs)


def inner_product(steps_a: Tensor, gamma_a: Tensor, steps_b: Tensor, gamma_b: Tensor) -> Tensor:
    """The integral of the product of two profiles, each normalised over (0, steps) (alg. 3), elementwise, float64.

    (gamma_a + 1)(gamma_b + 1) / ((gamma_a + gamma_b + 1) max(steps)) (min/max)^gamma, gamma of the profile that ends later."""
    ratio = steps_a / steps_b
    later = torch.where(ratio < 1, gamma_b, -gamma_a)
    scale = (gamma_a + gamma_b + 1) * torch.maximum(steps_a, steps_b)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**later / scale


def coefficients(steps: Sequence[float], stds: Sequence[float], step: float, std: float) -> Tensor:
    """The weights with which snapshots, at `steps` and of lengths `stds`, best add up to the average of length `std` at `step`, [n]
    float64: the least squares of their profiles (sec. 3.2 and alg. 3)."""
    n = torch.tensor([*steps], dtype=torch.float64)
    gamma = torch.tensor([exponent(s) for s in stds], dtype=torch.float64)
    target = torch.tensor(step, dtype=torch.float64), torch.tensor(exponent(std), dtype=torch.float64)
    gram = inner_product(n[:, None], gamma[:, None], n[None], gamma[None])
    return torch.linalg.lstsq(gram, inner_product(n, gamma, *target)[:, None], driver="gelsd").solution.squeeze(1)
