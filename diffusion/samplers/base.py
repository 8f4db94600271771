"""What samplers share: the state they yield."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """x at time t [], and the denoiser's estimate of x_0 that the move to x started from."""

    x: Tensor
    x0: Tensor
    t: Tensor


def last(states: Iterable[State]) -> State:
    """Run a sampler to its end: the final state, whose x is the sample."""
    return deque(states, maxlen=1).pop()
