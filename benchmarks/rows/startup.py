"""How long a command takes to begin: seconds from typing it to its help, its first step, its first image, each a process of its own."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from ..harness import Ratio, Row, Side
from ..process import Giver, Started
from ..turns import WARMING
from ..work import Bench
from .training import NEVER, loop

LIMIT = 300  # seconds
NUMBERS = count()
# What a run on digits says on this device; on a GPU, where the goal is of a warm compile cache, what a long one compiles.
DIGITS = {"cpu": ["trainer.accelerator=cpu"], "cuda": ["trainer.accelerator=gpu", "precision=auto", "compile=blocks"]}


def rows(bench: Bench) -> list[Row]:
    """A row for each command; its numbers are seconds, with a goal on a CPU and one on a GPU, and a peer's to compare."""
    torch_alone = "import torch", partial(ended, words=["-c", "import torch"])
    commands = (
        ("help", "train.py --help", partial(ended, words=["train.py", "--help"]), (1, 1), *torch_alone),
        ("train", "train.py, first step", first_step, (6, 20), "diffusers' loop, first step", their_first_step),
        ("sample", "sample.py, first image", first_image, (4, 20), "diffusers, first image", their_first_image),
        ("evaluate", "evaluate, 8 images", evaluated, (8, 20), *torch_alone),
    )
    made = []
    for name, ours, work, (on_cpu, on_cuda), theirs, their_work in commands:
        sides = Side(ours, partial(work, bench), needed=True), Side(theirs, partial(their_work, bench))
        seconds = Ratio(f"{ours}, seconds", ours, None, {"cpu": f"< {on_cpu}", "cuda": f"< {on_cuda}"})
        made.append(Row(f"startup-{name}", f"seconds of {ours}", "s", sides, (seconds, Ratio(f"{theirs} / ours", theirs, ours))))
    return made


def place(bench: Bench) -> Path:
    """A new folder."""
    return bench.place("startup", next(NUMBERS))


@contextmanager
def ended(bench: Bench, side: Side, words: list[str]) -> Iterator[Callable[[], float]]:
    """A command that ends by itself, whose end is waited for; once before, so that files are read."""
    side.facts["transformers installed"] = importlib.util.find_spec("transformers") is not None

    one = partial(seconds, bench, lambda folder: words)
    one()
    yield one


def seconds(bench: Bench, words: Callable[[Path], list[str]], until: Callable[[Path], bool] | None = None) -> float:
    """From the start of a command, whose words may name a new folder, to its end, or until there is something in that folder."""
    folder = place(bench)
    giver = Giver(folder)
    giver.give(WARMING)
    started = Started(words(folder), folder)
    try:
        return started.until(lambda: until(folder) and started.elapsed(), LIMIT) if until else started.ended(LIMIT)
    finally:
        started.end()
        giver.end()


def training(bench: Bench, folder: Path, *words: str) -> list[str]:
    """train.py on the embedded digits."""
    places = [f"paths.runs={folder}", f"paths.cache={bench.folder}/cache", "name=run"]
    return ["train.py", *DIGITS[bench.device], "metric=none", *places, *words]


@contextmanager
def first_step(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """Until metrics.jsonl says the first step's loss."""

    def stepped(folder: Path) -> bool:
        numbers = folder / "run/metrics.jsonl"
        return numbers.exists() and '"loss"' in numbers.read_text()

    one = partial(seconds, bench, lambda folder: training(bench, folder, *NEVER), stepped)
    one()
    yield one


@contextmanager
def trained(bench: Bench) -> Iterator[Path]:
    """The folder of a run of one step."""
    folder = place(bench)
    started = Started(training(bench, folder, "steps=1", "eval_every=100", "checkpoint_every=1"), folder)
    try:
        started.ended(LIMIT)
        yield folder / "run"
    finally:
        started.end()


@contextmanager
def first_image(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """sample.py of a run on digits, one image in ten steps; until it has ended, with all it writes."""
    with trained(bench) as run:
        words = ["sample.py", f"ckpt={run}", "n=1", "sampler=ddim", "grid.steps=10", f"out={bench.folder}/one"]
        with ended(bench, side, words) as one:
            yield one


@contextmanager
def evaluated(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """A metric of eight images of that run, until it has ended."""
    with trained(bench) as run:
        metric = ["metric=sliced_wasserstein", "metric.n=8", "metric.groups=0", "sampler=ddim", "grid.steps=10"]
        places = [f"paths.runs={bench.folder}", f"paths.cache={bench.folder}/cache"]

        words = ["-m", "diffusion.evaluate", f"ckpt={run}", *metric, *places]
        one = partial(seconds, bench, lambda folder: [*words, f"out={folder}/lines.jsonl"])
        one()
        yield one


@contextmanager
def their_first_step(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """diffusers' loop until it has made one step, of the small network."""

    bench.draw()
    words = loop(bench, 16, "accelerated", "--warmup=1", "--channels=32")
    made = partial(
        seconds, bench, lambda folder: [w.format(turns=folder) for w in words], lambda folder: (folder / "ready-0.jsonl").exists()
    )
    made()
    yield made


@contextmanager
def their_first_image(bench: Bench, side: Side) -> Iterator[Callable[[], float]]:
    """diffusers' pipeline, one image in two steps of a small network."""
    given = {"device": bench.device, "image_size": bench.sizes.image_size, "batch": 1, "channels": 32}
    with ended(bench, side, ["-m", "benchmarks.loops.drawing", "diffusers", json.dumps(given)]) as one:
        yield one
