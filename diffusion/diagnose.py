"""Is my loss normal? `python -m diffusion.diagnose runs/NAME`: the run's error by noise level, beside the least that any network could
have, and what that says.

It writes diagnose.md, .json and .png into the run's folder; the dashboard shows them.
"""

import argparse
import logging
import sys
from math import prod
from pathlib import Path
from typing import Any

from diffusion.shell import begin
from diffusion.support.commands import running
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import require_writable
from diffusion.support.progress import loading

COUNTED = 100_000  # steps, at most, whose decays are multiplied


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="of training and of those held out, at most (512)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one (auto)")
    parser.add_argument("--cache", default="data/cache", metavar="FOLDER", help="where a split's cache may be made (data/cache)")
    parser.add_argument("--trust", nargs="*", default=[], metavar="PACKAGE", help="packages of yours whose classes the run names")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with one_sentence():
        if given.images < 2:
            raise UserError(f"--images {given.images} are too few to know an error by: say 2 at least.")
        with loading("torch and the run"):
            from diffusion.checkpoint import find
            from diffusion.evaluation.diagnosis import diagnosed, lines_of_text, save_diagnosis
            from diffusion.support.devices import device

        folder = find(given.run)[0]
        require_writable(folder, "RUN")
        with running("diagnose", sys.argv[1:]), begin(trust=given.trust, places=[folder, Path(given.cache)]):
            found = diagnosed(given.run, given.images, device(given.device), share_of_first_half)
            print(lines_of_text(found))
            save_diagnosis(found, folder, "python -m diffusion.diagnose " + " ".join(sys.argv[1:]))


def share_of_first_half(model: Any) -> float | None:
    """How much of a model's averaged weights is from the first half of its training: the product of the decays since; None without an
    average."""
    from diffusion.training.ema import EMA
    from diffusion.training.power_ema import Power

    said = model.ema or {}
    kinds = {"decay": EMA, "std": Power}
    averages = [kind(said[key]) for key, kind in kinds.items() if said.get(key)]
    steps = range(model.step // 2, model.step)
    every = 1 + len(steps) // COUNTED  # of more steps, those between are taken to have the decay of one near them
    return prod(decay_at(averages[0], step) ** every for step in steps[every // 2 :: every]) if averages else None


def decay_at(average: Any, step: int) -> float:
    """The decay of an average after so many steps."""
    average.steps = step
    return float(average.decay)


if __name__ == "__main__":
    main()
