"""Training as others write it, each in a process of its own that takes turns: `python -m benchmarks.loops.NAME --turns FOLDER ...`."""

import argparse
from typing import Any

from ..turns import Turns, peak


def settings(description: str | None) -> argparse.Namespace:
    """What each of the loops is told; `imported` is the process's memory before it has made anything."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("turns", "images", "device"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("channels", "image-size", "batch", "warmup", "steps", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    given = parser.parse_args()
    given.imported = peak("cpu")["resident, GiB"]
    return given


def turns(given: argparse.Namespace, **facts: Any) -> Turns:
    """This process's turns, with what it says of itself."""
    said = {"precision": given.precision, "compiled": given.compile, "imported, GiB": given.imported, **facts}
    return Turns(given.turns, given.warmup, given.steps, given.device, 0, **said)
