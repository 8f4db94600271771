"""What a network costs, counted and not measured: floating-point operations, bytes, and the time that a ring of GPUs takes for its sums.

One multiply-add is two operations. `torch.utils.flop_counter` counts those of matrix products, convolutions and attention on tensors that
have shapes and no numbers (device "meta"), so that any network and resolution is counted at once; norms, activations, sums and the
optimizer, some hundredths of it, are not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import LiveBytes
from diffusion.networks import attention

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Arithmetic:
    """Operations of one image: through the network once, and in a training step, gradients included."""

    forward: int
    step: int


@dataclass(frozen=True)
class Memory:
    """Bytes that do not depend on the batch, all float32, and those of one image: the largest sum of what a training step keeps for the
    gradients and works with."""

    weights: int
    averages: int
    activations: int

    @property
    def states(self) -> int:
        """Weights, gradients, Adam's two moments, and the averages of the weights."""
        return 4 * self.weights + self.averages


def operations(work: Callable[[], Any]) -> int:
    """Those that a piece of work takes. Attention is computed by plain products meanwhile: the counter does not know every fused form."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def product(side: int, device: str, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    """A product of square matrices of random numbers, whose rate is what a device can do at best, and its operations."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * side**3


def arithmetic(make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]]) -> Arithmetic:
    """Of the network that `make()` makes, on the tensors `inputs(batch)`."""
    with torch.device("meta"):
        network, given = make(), inputs(1)
        forward = operations(lambda: network(*given))
        step = operations(lambda: network(*given).square().mean().backward())
    return Arithmetic(forward, step)


def memory(make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], averages: int = 1, batch: int = 64) -> Memory:
    """Of a training of the network in float32, as `arithmetic` takes it, with so many averages of its weights.

    Activations are the slope of the largest sum of live bytes over the batch, from one that is large beside the gradients of the weights to
    its double, on tensors without numbers."""
    with torch.device("meta"):
        network = make()
        weights = sum(p.numel() for p in network.parameters()) * FLOAT
        few, many = (peak(network, inputs(n)) for n in (batch, 2 * batch))
    return Memory(weights, averages * weights, (many - few) // batch)


def peak(network: nn.Module, given: tuple[Tensor, ...]) -> int:
    """The largest sum of bytes that a step's own tensors have at once."""
    network.zero_grad(set_to_none=True)
    with LiveBytes() as live, patch.object(attention, "scaled_dot_product_attention", lambda q, k, v, mask=None: Fused.apply(q, k, v)):
        network(*given).square().mean().backward()
    return live.peak


class Fused(torch.autograd.Function):
    """What a GPU's kernel of attention keeps, queries, keys, values and output, without their numbers. Of tensors that have none torch
    would take the plain way, which keeps matrices of all tokens by all tokens."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(kept) for kept in ctx.saved_tensors[:3])


def all_reduce(size: float, ranks: int, bandwidth: float) -> float:
    """Seconds of a ring's sum of `size` bytes over so many ranks: each sends and receives 2 (n - 1)/n of them at `bandwidth` bytes/s."""
    return 2 * (ranks - 1) / ranks * size / bandwidth


@dataclass(frozen=True)
class Machine:
    """Assumptions about a machine: operations/s that a GPU reaches in this work, bytes/s that each GPU sends in a ring inside of a
    machine and between machines, and GPUs in a machine. A ring goes at the pace of its slowest link."""

    rate: float
    inside: float
    between: float
    gpus: int = 8

    def __post_init__(self) -> None:
        wrong = [name for name in ("rate", "inside", "between", "gpus") if not 0 < getattr(self, name) < float("inf")]
        if wrong:
            raise ValueError(f"{wrong[0]}={getattr(self, wrong[0])} should be a number above 0.")

    def bandwidth(self, ranks: int) -> float:
        """Of a ring of so many."""
        return self.inside if ranks <= self.gpus else min(self.inside, self.between)

    def sums(self, size: float, ranks: int) -> float:
        """Seconds in which so many ranks have summed their gradients of `size` bytes."""
        return all_reduce(size, ranks, self.bandwidth(ranks))

    def binding_batch(self, cost: Arithmetic, size: float, ranks: int) -> float:
        """Images on each GPU under which the sums take longer than the gradients that they can hide behind."""
        return self.sums(size, ranks) * self.rate / (cost.step - cost.forward)

    def step(self, cost: Arithmetic, size: float, batch: int, ranks: int, hidden: bool = True) -> float:
        """Seconds of a step of `batch` images on each of so many ranks; `hidden`: the sums go on beside the gradients, as DDP's buckets do
        at best, else after them, as at worst."""
        forward, backward = (batch * work / self.rate for work in (cost.forward, cost.step - cost.forward))
        sums = self.sums(size, ranks)
        return forward + (max(backward, sums) if hidden else backward + sums)
