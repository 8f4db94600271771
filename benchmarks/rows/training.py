"""Training: `train.py` in a process, as it is typed, against the peers' own loops and a loop without a framework."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from diffusion.support.devices import fastest

from .. import loops, networks
from ..flops import product
from ..harness import OURS, Ratio, Row, Side
from ..process import Started, taking
from ..work import Bench

# What we type for each precision; compile=auto compiles on a GPU alone.
WORDS = {"fp32": ["precision=32-true", "compile=off"], "best": ["precision=auto", "compile=auto"]}
NEVER = ["eval_every=100000000", "checkpoint_every=100000000"]  # within a run of the benchmark
IMPORTS = """
import train, diffusion.training.run, pytorch_lightning.loggers
from benchmarks.turns import peak
print(peak('cpu')['resident, GiB'])
"""
GROWN, FLOP = "grown, GiB", "GFLOP"


def rows(bench: Bench) -> list[Row]:
    """A row for each batch and precision; float32 at the smallest batch alone."""
    return [row(bench, batch, how) for i, batch in enumerate(bench.sizes.batches) for how in ("fp32", "best") if i == 0 or how == "best"]


def row(bench: Bench, batch: int, how: str) -> Row:
    """One batch size in float32, or by our best words: then the peers run in the precision that these choose here, bfloat16 where there is
    hardware for it, and diffusers also as it is documented."""
    peer = "bf16" if how == "best" and fastest(bench.device) == "bf16-mixed" else "fp32"
    start = partial(partial, process, bench, batch, how)
    sides = [
        Side(OURS, start(train(bench, batch, WORDS[how])), needed=True),
        Side("bare", start(loop(bench, batch, "bare", f"--precision={peer}", *as_ours(bench, how)))),
        Side("diffusers", start(loop(bench, batch, "accelerated", f"--precision={peer}"))),
        Side("lucidrains", start(loop(bench, batch, "lucidrains", f"--precision={peer}"))),
        Side("matmul", partial(matmul, bench, peer)),
    ]
    if peer == "bf16":
        sides.insert(2, Side("diffusers fp32", start(loop(bench, batch, "accelerated"))))
    if how == "best" and bench.device == "cuda":  # on a CPU there is no room for so many processes at once
        sides.insert(2, Side("bare eager", start(loop(bench, batch, "bare", "--precision=bf16", *as_ours(bench, "fp32")))))
        sides.insert(3, Side("bare contiguous", start(loop(bench, batch, "bare", "--precision=bf16", "--compile"))))
        sides.insert(5, Side("diffusers compiled", start(loop(bench, batch, "accelerated", "--precision=bf16", "--compile"))))
    what = f"training, {batch} images a step, {'float32' if how == 'fp32' else 'our best words: ' + ' '.join(WORDS[how])}"
    return Row(f"training-{batch}-{how}", what, "s/image", tuple(sides), (*ratios(how, peer), *memory(bench)))


def as_ours(bench: Bench, how: str) -> list[str]:
    """What the bare loop is told of a GPU, so that it computes as `train.py` does."""
    return ["--channels-last", *(["--compile"] if how == "best" else [])] if bench.device == "cuda" else []


OVERHEAD = Ratio("overhead: ours / bare - 1", OURS, "bare", {"cpu": "< 0.02", "cuda": "< 0.03"}, less=1.0)
PER_FLOP = Ratio("lucidrains / ours, per FLOP", "lucidrains", OURS, {"cpu": ">= 1", "cuda": ">= 1"}, per=FLOP)


def ratios(how: str, peer: str) -> tuple[Ratio, ...]:
    """What is made of a row's numbers, where the peers compute in this precision."""
    if how == "fp32":
        return (
            Ratio("diffusers / ours", "diffusers", OURS, {"cpu": ">= 1.1"}),
            Ratio("lucidrains / ours", "lucidrains", OURS),
            PER_FLOP,
            OVERHEAD,
            Ratio("FLOPs: ours / matmul", "matmul", OURS, per=FLOP),
        )
    return (
        Ratio("diffusers as documented (fp32) / ours", "diffusers fp32" if peer == "bf16" else "diffusers", OURS, {"cpu": ">= 2"}),
        Ratio(f"diffusers {peer} / ours", "diffusers", OURS, {"cpu": ">= 1", "cuda": ">= 2"}),
        Ratio("diffusers bf16, compiled / ours", "diffusers compiled", OURS, {"cuda": ">= 2"}),
        Ratio("lucidrains / ours", "lucidrains", OURS, {"cuda": ">= 2"}),
        PER_FLOP,
        OVERHEAD,
        Ratio("bare eager / bare compiled", "bare eager", "bare"),
        Ratio("bare contiguous / bare channels last", "bare contiguous", "bare"),
        Ratio("FLOPs: ours / matmul", "matmul", OURS, {"cuda": ">= 0.4"}, per=FLOP),
    )


def memory(bench: Bench) -> list[Ratio]:
    """Of the peaks: by how much the process has grown beyond its imports, or on a GPU what the allocator has given out."""
    fact, goals = (GROWN if bench.device == "cpu" else "allocated, GiB"), {"cpu": ">= 1", "cuda": ">= 1"}
    return [
        *(Ratio(f"memory: {name} / ours", name, OURS, goals, fact=fact) for name in ("diffusers", "lucidrains")),
        Ratio("memory: bare / ours", "bare", OURS, fact=fact),
    ]


def train(bench: Bench, batch: int, words: list[str]) -> list[str]:
    """The words of train.py for this work, whose last are `words`."""
    s, cpu = bench.sizes, bench.device == "cpu"
    data = ["dataset=image_folder", f"dataset.root={bench.pictures}", f"dataset.image_size={s.image_size}", "dataset.num_classes=0"]
    data += ["data.device_resident=true", "data.num_workers=0", f"paths.cache={bench.folder}/cache", "paths.runs={turns}", "name=run"]
    model = ["conditions=none", "network=ddpm_cifar10", f"network.channels={s.channels}", "schedule=linear", "objective=simple"]
    run = [f"batch_size={batch}", "steps=1000000", "optimizer.lr=0.0002", "metric=none", *NEVER]
    run += [f"trainer.accelerator={'cpu' if cpu else 'gpu'}", f"log_every={log_every(bench)}"]
    return ["train.py", *data, *model, *run, *turning(s.warmup, s.steps), *words]


def turning(warmup: int, steps: int) -> list[str]:
    """The words that let a run take turns."""
    settings = {"_target_": "benchmarks.turning.Turning", "folder": "{turns}", "warmup": warmup, "steps": steps}
    return [f"+callbacks.turns.{key}={value}" for key, value in settings.items()]


def log_every(bench: Bench) -> int:
    """train.py's own on a GPU; on a CPU, where a round is of a few steps, each, so that logging is in it."""
    return 1 if bench.device == "cpu" else 50


def loop(bench: Bench, batch: int, name: str, *words: str) -> list[str]:
    """The words of one of `loops`."""
    s = bench.sizes
    channels = s.lucidrains if name == "lucidrains" else s.channels
    given = {"images": bench.pictures, "device": bench.device, "channels": channels, "image-size": s.image_size, "batch": batch}
    given |= {"warmup": s.warmup, "steps": s.steps, "workers": s.workers, "log-every": log_every(bench)}
    return ["-m", f"{loops.__name__}.{name}", "--turns={turns}", *(f"--{key}={value}" for key, value in given.items()), *words]


@contextmanager
def process(bench: Bench, batch: int, how: str, words: list[str], side: Side) -> Iterator[Callable[[], float]]:
    """A side that is a process which takes turns. Its facts are what it says of itself, and the memory it takes above what it imports."""
    bench.draw()
    with taking(bench.place("training", batch, how, side.name), [words]) as taken:
        side.facts |= work_of_ours(bench) if side.name == OURS else {}

        def warm() -> None:
            (said,) = taken.warm()
            side.facts.update({key: value for key, value in said.items() if key not in ("pid", "torch")})

        def one() -> float:
            (line,) = taken()
            side.facts.update({key: value for key, value in line.items() if key.endswith("GiB")})
            side.facts[GROWN] = line["resident, GiB"] - side.facts["imported, GiB"]
            return line["seconds"] / (line["steps"] * batch)

        side.warm = warm
        yield one


def work_of_ours(bench: Bench) -> dict[str, float]:
    """What train.py does not say of itself: its network's size, and the memory that its imports take."""
    started = Started(["-c", IMPORTS], bench.place("imports"))
    try:
        started.ended(120)
        imported = float(started.said.read_text().split()[-1])
    finally:
        started.end()
    size = bench.sizes.image_size
    return networks.facts(networks.ours(bench.sizes.channels, size), size, "cpu") | {"imported, GiB": imported}


@contextmanager
def matmul(bench: Bench, precision: str, side: Side) -> Iterator[Callable[[], float]]:
    """Seconds for a product of square matrices, the machine's rate. On a GPU float32 is TF32, as in all of this process."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    times = 20 if bench.device == "cuda" else 3
    multiply, work = product(bench.sizes.matmul, bench.device, kind)
    side.facts |= {"GFLOP": work / 1e9, "threads": torch.get_num_threads()}
    bench.seconds(multiply)

    def many() -> None:
        for _ in range(times):
            multiply()

    def one() -> float:
        return bench.seconds(many) / times

    yield one
