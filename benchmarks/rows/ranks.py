"""Two processes: one run by trainer.devices=2 against two independent runs at once, each process on one thread. What these make in the
same time is what the cores allow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ..harness import Ratio, Row, Side
from ..process import taking
from ..work import Bench
from .training import NEVER, turning

TOGETHER, APART = "one run of two processes", "two runs"


def rows(bench: Bench) -> list[Row]:
    """One row, of the CPU; NCCL has tests of its own."""
    if bench.device != "cpu":
        return []
    width, batch, *_ = bench.sizes.ranks
    sides = (Side(TOGETHER, partial(runs, bench, True), needed=True), Side(APART, partial(runs, bench, False), needed=True))
    what = f"two processes of one thread, {batch} images each, width {width}"
    return [Row("ranks", what, "s/image", sides, (Ratio("of what the cores allow", APART, TOGETHER, {"cpu": ">= 0.95"}),))]


@contextmanager
def runs(bench: Bench, together: bool, side: Side) -> Iterator[Callable[[], float]]:
    """Seconds for an image of both processes."""
    width, batch, warmup, steps = bench.sizes.ranks
    words = ["train.py", "dataset=synthetic", "dataset.num_classes=0", f"dataset.image_size={bench.sizes.image_size}", "conditions=none"]
    words += ["network=ddpm_cifar10", f"network.channels={width}", "schedule=linear", "objective=simple", "metric=none", "steps=1000000"]
    words += ["trainer.accelerator=cpu", "log_every=1", f"paths.cache={bench.folder}/cache", "paths.runs={turns}", "name=run", *NEVER]
    words += [f"batch_size={2 * batch if together else batch}", *turning(warmup, steps)]
    words += ["trainer=ddp", "trainer.devices=2"] if together else []
    starts, ranks = ([words], 2) if together else ([words, words], 1)
    with taking(bench.place("ranks", len(starts)), starts, ranks, {"OMP_NUM_THREADS": "1"}) as taken:

        def warm() -> None:
            side.facts["threads"] = "+".join(str(said["threads"]) for said in taken.warm())

        side.warm = warm
        yield lambda: 1 / sum(line["steps"] * batch / line["seconds"] for line in taken())
