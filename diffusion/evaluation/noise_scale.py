"""The gradient noise scale: how large a batch is worth its work."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NoiseScale:
    """`square` is an estimate of |G|^2, of the whole data's gradient G, which may be below 0 by chance, and `trace` one of tr(Sigma), Sigma
    the covariance of one item's gradient; `images` have been looked at."""

    square: float
    trace: float
    images: int

    @property
    def value(self) -> float:
        """B_simple = tr(Sigma)/|G|^2 in items (1812.06162, eq. 2.9): at so many a batch's gradient is as much signal as noise. Infinite
        where |G|^2 was not told from 0."""
        return self.trace / self.square if self.square > 0 else float("inf")


def noise_scale(network: nn.Module, loss: Callable[[int], Tensor], batches: int, batch_size: int) -> NoiseScale:
    """The noise scale of `loss(i)`, the mean loss of batch i = 0 .. `batches` - 1 of `batch_size` items, by the network's weights.

    Of gradients G_b and G_B of b and B = `batches` b items, |G|^2 = (B |G_B|^2 - b |G_b|^2)/(B - b) and
    tr(Sigma) = (|G_b|^2 - |G_B|^2)/(1/b - 1/B) on average (1812.06162, app. A.1), |G_b|^2 being the mean over the batches, of which G_B is
    the mean. Raises ValueError for fewer than two batches."""
    if batches < 2:
        raise ValueError("The noise of gradients is seen in two batches at least.")
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    total, small = [torch.zeros_like(weight) for weight in weights], 0.0
    for i in range(batches):
        found = torch.autograd.grad(loss(i), weights, allow_unused=True)
        gradient = [torch.zeros_like(weight) if of is None else of for of, weight in zip(found, weights, strict=True)]
        small += sum(part.double().square().sum().item() for part in gradient) / batches
        torch._foreach_add_(total, gradient)
    large = sum((part.double() / batches).square().sum().item() for part in total)
    few, many = batch_size, batches * batch_size
    return NoiseScale((many * large - few * small) / (many - few), (small - large) / (1 / few - 1 / many), many)
