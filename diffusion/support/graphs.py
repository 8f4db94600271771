"""CUDA graphs: what a network's call launches on a GPU is recorded once for each shape, and then played again by one launch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Play = Callable[..., Tensor]
SHAPES = 8  # recorded of a network; each keeps memory of its own, and an adaptive sampler asks for as many as its batch has images


class Room:
    """Where calls are recorded: on a stream of the current device, and in a pool of memory that they share, since what a play gives is
    copied before the next."""

    @cached_property
    def stream(self) -> Any:
        return torch.cuda.Stream()

    @cached_property
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()


class Graphs:
    """The recorded calls of some networks, which live as long as this object, or until the weights lie elsewhere in memory."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks, self.room = tuple(dict.fromkeys(networks)), Room()
        self.places: list[int] = []
        self.recorded: dict[nn.Module, Recorded] = {}

    @contextmanager
    def played(self) -> Iterator[None]:
        """Within the context the networks' calls are `Recorded`."""
        places = [weight.data_ptr() for network in self.networks for weight in (*network.parameters(), *network.buffers())]
        if places != self.places:
            self.places = places
            self.recorded = {network: Recorded(unrecorded(network.forward), self.room) for network in self.networks}
        before = {network: vars(network).get("forward") for network in self.networks}  # their own where this is within itself
        for network, recorded in self.recorded.items():
            network.forward = recorded
        try:
            yield
        finally:
            for network, forward in before.items():
                if forward is None:
                    del network.forward
                else:
                    network.forward = forward


class Recorded:
    """A network's forward pass without gradients. The first call of a shape is plain, the second is recorded: what comes only once, such as
    a last smaller batch, is not worth it. x, labels and conditions are copied into the record's own tensors. Of more than `SHAPES` shapes,
    and where gradients are asked for, calls are plain."""

    def __init__(self, forward: Play, room: Room) -> None:
        self.forward, self.room = forward, room
        self.seen, self.plays = set[tuple](), dict[tuple, Play]()

    def __call__(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        given = (x, label) if cond is None else (x, label, cond)
        if torch.is_grad_enabled():
            return self.forward(*given)
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in given)
        with torch.cuda.device(x.device):
            if key in self.seen and key not in self.plays and len(self.plays) < SHAPES:
                self.plays[key] = captured(self.forward, given, self.room)
            self.seen.add(key)
            return self.plays.get(key, self.forward)(*given)


def unrecorded(forward: Play) -> Play:
    """The forward pass itself, of one that may be recorded."""
    return forward.forward if isinstance(forward, Recorded) else forward


def captured(forward: Play, given: tuple[Tensor, ...], room: Room) -> Play:
    """A call of these shapes as one launch. Autocast casts the weights in each play, where plain calls keep what it made: with weights of
    bfloat16 (precision=bf16-true) there is nothing to cast."""
    own, kind, graph = tuple(map(torch.clone, given)), given[0].device.type, torch.cuda.CUDAGraph()
    with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
        room.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(room.stream):
            forward(*own)  # what is made at a stream's first call must not be in a graph
        torch.cuda.current_stream().wait_stream(room.stream)
        with torch.cuda.graph(graph, pool=room.pool, stream=room.stream):
            out = forward(*own)

    def play(*given: Tensor) -> Tensor:
        for mine, theirs in zip(own, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return out.clone()

    return play
