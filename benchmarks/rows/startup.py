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
    """One row; its numbers are seconds, and those of the peers' are there to compare."""
    steps = {"cpu": "< 6", "cuda": "< 20"}
    sides = (
        Side("import torch", partial(ended, bench, ["-c", "import torch"])),
        Side("train.py --help", partial(ended, bench, ["train.py", "--help"]), needed=True),
        Side("train.py, first step", partial(first_step, bench), needed=True),
        Side("sample.py, first image", partial(first_image, bench), needed=True),
        Side("evaluate, 8 images", partial(evaluated, bench)),
        Side("diffusers' loop, first step", partial(their_first_step, bench)),
        Side("diffusers, first image", partial(their_first_image, bench)),
    )
    ratios = (
        Ratio("train.py --help, seconds", "train.py --help", None, {"cpu": "< 1", "cuda": "< 1"}),
        Ratio("train.py to its first step, seconds", "train.py, first step", None, steps),
        Ratio("sample.py to its first image, seconds", "sample.py, first image", None, {"cpu": "< 4", "cuda": "< 20"}),
        Ratio("diffusers / ours, first step", "diffusers' loop, first step", "train.py, first step"),
        Ratio("diffusers / ours, first image", "diffusers, first image", "sample.py, first image"),
    )
    return [Row("startup", "seconds until a command has begun", "s", sides, ratios)]


def place(bench: Bench) -> Path:
    """A new folder."""
    return bench.place("startup", next(NUMBERS))


@contextmanager
def ended(bench: Bench, words: list[str], side: Side) -> Iterator[Callable[[], float]]:
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
        with ended(bench, words, side) as one:
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
    with ended(bench, ["-m", "benchmarks.loops.drawing", "diffusers", json.dumps(given)], side) as one:
        yield one
