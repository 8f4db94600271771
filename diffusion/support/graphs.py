"""CUDA graphs: what a network's call launches on a GPU is recorded once for each shape, and then played again by one launch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

Play = Callable[..., Tensor]
SHAPES = 8  # recorded of a network; each keeps memory of its own, and an adaptive sampler asks for as many as its batch has images


class Recorded:
    """A network's forward pass without gradients. The first call of a shape is plain, the second is recorded: what comes only once, such as
    a last smaller batch, is not worth it. Labels and conditions are copied into the record's own tensors, as x is; of more than `SHAPES`
    shapes, and where gradients are asked for, calls are plain."""

    def __init__(self, forward: Play) -> None:
        self.forward, self.seen, self.plays = forward, set[tuple](), dict[tuple, Play]()

    def __call__(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        given = (x, label) if cond is None else (x, label, cond)
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in given)
        if torch.is_grad_enabled() or key not in self.seen:
            self.seen.add(key)
            return self.forward(*given)
        if key not in self.plays:
            if len(self.plays) == SHAPES:
                return self.forward(*given)
            self.plays[key] = self.record(given)
        return self.plays[key](*given).clone()  # the next play writes over what this one gave

    def record(self, given: tuple[Tensor, ...]) -> Play:
        """A call of these shapes as one launch. Autocast's copies of the weights are made in it, and not kept from call to call."""
        kind = given[0].device.type
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            return cast(Play, torch.cuda.make_graphed_callables(self.forward, tuple(map(torch.clone, given))))


@contextmanager
def recorded(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context these networks' calls are `Recorded`; their weights must stay where they are in memory."""
    for network in networks:
        network.forward = Recorded(network.forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward
