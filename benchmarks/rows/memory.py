"""Peak memory of sampling, each side in a process of its own: by how much it has grown beyond what it imports, or on a GPU what its
allocator has given out at most. That of training is in the rows of training."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ..harness import OURS, Ratio, Row, Side
from ..process import Started
from ..work import Bench


def rows(bench: Bench) -> list[Row]:
    """One row, of DDIM with the network that is trained."""
    sides = tuple(Side(name, partial(process, bench), needed=name == OURS) for name in (OURS, "diffusers", "lucidrains"))
    goals = {"cpu": ">= 1", "cuda": ">= 1"}
    ratios = tuple(Ratio(f"{name} / ours", name, OURS, goals) for name in ("diffusers", "lucidrains"))
    what = f"peak memory of sampling, {bench.sizes.batches[0]} images, width {bench.sizes.channels}, float32"
    return [Row("memory-sampling", what, "GiB", sides, ratios)]


@contextmanager
def process(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """A side that starts a process a round."""
    s = bench.sizes
    given = {"device": bench.device, "image_size": s.image_size, "batch": s.batches[0], "channels": s.channels, "lucidrains": s.lucidrains}

    def one() -> float:
        started = Started(["-m", "benchmarks.loops.drawing", side.name, json.dumps(given)], bench.place("memory", side.name))
        try:
            started.ended(300)
        finally:
            started.end()
        side.facts |= (said := json.loads(started.said.read_text().splitlines()[-1]))
        return said["resident, GiB"] - said["imported, GiB"] if bench.device == "cpu" else said["allocated, GiB"]

    yield one
