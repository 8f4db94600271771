"""The contract of samplers, and the state that they yield."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffusion.typing import Denoise, Noise


class State(NamedTuple):
    """x at time t [], and the denoiser's estimate of x_0 that the move to x started from."""

    x: Tensor
    x0: Tensor
    t: Tensor


class Sampler(Protocol):
    """The contract; see `diffusion.samplers`."""

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = ..., /) -> Iterator[State]:
        """Every state on the way from x [b, ...] at times[0] down to the last of times [steps + 1], the sample."""


def part(sampler: Any, share: float) -> Any:
    """The sampler for a call that makes this share of a grid's steps. One that spreads a number over the steps of its grid has a method
    `share`; a sampler that calls another for less than the whole grid calls this first."""
    return sampler.share(share) if hasattr(sampler, "share") else sampler


def last(states: Iterable[State]) -> State:
    """Run a sampler to its end: the final state, whose x is the sample."""
    return deque(states, maxlen=1).pop()
