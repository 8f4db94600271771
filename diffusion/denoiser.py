"""A denoiser: given x_t and t, an estimate of the clean x_0 and of the noise eps in it."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule
from diffusion.schedules.base import remembered
from diffusion.typing import Network, expand


class Estimate(NamedTuple):
    """x0 and eps [b, ...] with x_t = alpha x0 + sigma eps; `frac` [b, ...] is v in IDDPM eq. 15: the learned log variance as a fraction of
    the way from the posterior's smaller (0) to its larger (1). It is None if the variance is not learned."""

    x0: Tensor
    eps: Tensor
    frac: Tensor | None = None


class Denoiser(nn.Module):
    """A network with its schedule and the meaning of its output.

    The network is any module called as `network(x, label, cond)`: x = c x_t, where c is the parameterization's `scale_in` (1 unless the
    path explodes or the network is preconditioned), and `label` [b] is `schedule.label(t)`, float32. With `learned_variance` its output has
    twice the channels of x_t: the second half, nominally in [-1, 1], is mapped to frac = (out + 1) / 2. Where none is learned,
    `fixed_variance` (fixed_small or fixed_large, None for either) is the one that the bound was trained with, and is measured with.

    Raises ValueError where the output cannot determine x_0, an epsilon- or score-predictor on a schedule with alpha(1) = 0, and for an
    autoencoder, which denoises nothing."""

    uses: ClassVar[Mapping[str, str]] = {"sample from it": "python sample.py ckpt={}"}  # what its run is for: a command, given its folder

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        parameterization: Parameterization,
        learned_variance: bool = False,
        fixed_variance: str | None = None,
    ) -> None:
        super().__init__()
        if hasattr(network, "moments"):
            name = type(network).__name__
            raise ValueError(f"{name} encodes pictures and denoises none: say task=autoencoder to train it, or another network.")
        if parameterization.needs_signal and schedule.reaches_noise:
            raise ValueError(
                f"{type(parameterization).__name__} prediction cannot be used with {type(schedule).__name__} here: its alpha is 0 at "
                "t = 1, where x_t is pure noise and says nothing of x_0; use parameterization=v or parameterization=x0."
            )
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self.learned_variance, self.fixed_variance = learned_variance, fixed_variance

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are (the CPU for a network without any)."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """x_t [b, ...], t [] or [b] in (0, 1], cond [b, ...] or None."""
        levels, read = self.schedule(t), self.parameterization
        alpha, sigma = (expand(v, x_t) for v in levels)
        x = (expand(read.scale_in(*levels), x_t) * x_t).to(next(self.network.parameters(), x_t).dtype)
        out = self.network(x, labels(self.schedule, t, x_t), cond).to(x_t.dtype)
        frac = None
        if self.learned_variance:
            out, fraction = out.chunk(2, dim=1)
            frac = (fraction + 1) / 2
        if out.shape != x_t.shape:
            raise ValueError(
                f"The network's output has shape {tuple(out.shape)} where {tuple(x_t.shape)} was expected; with "
                "learned_variance it has twice the channels of its input, otherwise as many."
            )
        return Estimate(read.x0(out, x_t, alpha, sigma), read.eps(out, x_t, alpha, sigma), frac)


@remembered
def label_of(t: Tensor, schedule: Schedule) -> Tensor:
    """`schedule.label`, float32."""
    return schedule.label(t).float()


def labels(schedule: Schedule, t: Tensor, x_t: Tensor) -> Tensor:
    """What a network is told of the time t, [] or [b], for each of x_t [b, ...]: [b] float32 on its device."""
    label = label_of(t, schedule)
    if t.ndim == 0:  # one time for all, on the CPU: filled in without waiting for the device
        return torch.full((len(x_t),), label.item(), device=x_t.device)
    return label


def null(cond: Tensor) -> Tensor:
    """The null condition in cond's shape: -1 for integer labels (a network's learned null class), 0 for embeddings."""
    return torch.zeros_like(cond) if cond.is_floating_point() else torch.full_like(cond, -1)
