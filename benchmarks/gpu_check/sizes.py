"""How large the check is: the one place where its commands' words stand. {minutes}, {data} and {weights} are filled in."""

from dataclasses import dataclass, replace
from pathlib import Path

from diffusion.support.errors import UserError


@dataclass(frozen=True)
class Size:
    """Words of the commands, for a machine and a time.

    tests:     which tests, as `pytest -m` reads it; timeout: seconds for each
    bench:     the table of peers
    training:  of train.py; `share` of a part's minutes is what {minutes} says, so that loading and the last evaluation have the rest
    distance:  of the metric, in training and by diffusion.evaluate
    n:         the images of the distance at the end
    reference: the data set's word, as diffusion.evaluate reads it
    files:     whether it needs --data"""

    name: str
    tests: str
    timeout: int
    bench: tuple[str, ...]
    training: tuple[str, ...]
    share: float
    distance: tuple[str, ...]
    n: int
    reference: str
    files: bool = False


RESNET = "resnet56-*.th"
OF_RESNET = ("metric=fd_resnet56", "metric.weights={weights}", "dataset.root={data}")

FAST = ("experiment=cifar10_fast", "minutes={minutes}")
FULL = Size(
    name="full",
    tests="cuda",
    timeout=240,
    bench=("-m", "benchmarks"),
    training=FAST,
    share=0.65,
    distance=OF_RESNET,
    n=10_000,
    reference="cifar10",
    files=True,
)
SMALL = Size(
    name="small",
    tests="cuda and not slow",
    timeout=60,
    bench=("-m", "benchmarks", "--smoke"),
    training=("experiment=ddim_digits", "grid.steps=5", "network.channels=16", "steps=60", "eval_every=20", "log_every=5"),
    share=0.5,
    distance=("metric=fd_digits", "metric.groups=0"),
    n=200,
    reference="digits",
)
TINY = ("compile=off", "network.channels=32", "network.res_blocks=1", "batch_size=16", "grid.steps=5", "precision=32-true")
PICTURES = replace(
    FULL,
    name="pictures",
    tests="cuda and not slow",
    bench=SMALL.bench,
    training=(*FULL.training, *TINY, "steps=40", "eval_every=20", "log_every=5", "metric.n=100"),
    distance=(*OF_RESNET, "dataset.split=test", "metric.groups=0"),
    n=100,
)
FEW = 4  # minutes below which a GPU is only tried


def size(device: str, minutes: float, data: Path | None) -> Size:
    """FULL on a GPU with minutes enough; elsewhere the same commands made small, on real pictures where there are files and time."""
    if minutes < FEW or (device == "cpu" and data is None):
        return SMALL
    if data is None:
        raise UserError("The check's training is of CIFAR-10: say --data FOLDER, where its files are, or --minutes 1.")
    return FULL if device == "cuda" else PICTURES


def filled(words: tuple[str, ...], minutes: float, data: Path | None) -> list[str]:
    """Words with their places filled in. Raises UserError where the metric's weights are not among the data."""
    found = sorted(data.rglob(RESNET)) if data else []
    if not found and any("{weights}" in word for word in words):
        raise UserError(f"--data {data} has no {RESNET}, the network of the distance: put it there.")
    places = {"minutes": f"{minutes:.2f}", "data": data, "weights": found[0] if found else None}
    return list({word.split("=")[0]: word.format(**places) for word in words}.values())
