"""An average of any length from a run with ema=posthoc, afterwards: `python -m diffusion.average runs/NAME 0.07`.

It writes runs/NAME/checkpoints/ema=0.07.ckpt, which `sample.py ckpt=...` takes like any checkpoint of the run.
"""

import argparse
from pathlib import Path

from torch import Tensor

from diffusion.checkpoint import find, read, read_checkpoint, write_checkpoint
from diffusion.support.errors import UserError, one_sentence
from diffusion.training.power_ema import coefficients


def averaged(run: str | Path, std: float, step: int | None = None) -> tuple[int, dict[str, Tensor]]:
    """(step, the weights' average of relative length `std`), float32, as of the latest snapshot, of those up to `step` if given.

    Raises UserError if the run has no snapshots up to then, ValueError for a length that no average has."""
    folder = find(run)[0] / "checkpoints" / "ema"
    found = (read_checkpoint(file) for file in sorted(folder.glob("step=*.pt")))
    snapshots = [snapshot for snapshot in found if snapshot["step"] <= (step or 2**63)]
    if not snapshots:
        raise UserError(f"{folder} has no snapshots to average{f' up to step {step}' if step else ''}; train with ema=posthoc.")
    step = snapshots[-1]["step"]
    every = [(s["step"], length, average) for s in snapshots for length, average in zip(s["stds"], s["averages"], strict=True)]
    steps, stds, averages = zip(*every, strict=True)
    weights = coefficients(steps, stds, step, std)
    return step, {
        name: sum(w * average[name].double() for w, average in zip(weights.tolist(), averages, strict=True)).float() for name in averages[0]
    }


def write_average(run: str | Path, std: float, step: int | None = None) -> Path:
    """The reconstructed average as a checkpoint of the run, where the averaged weights are those. Returns its path."""
    file, checkpoint = read(run)
    target = file.parent / (f"ema={std:g}.ckpt" if step is None else f"ema={std:g}-step={step}.ckpt")
    step, shadow = averaged(run, std, step)
    kept = {k: checkpoint[k] for k in ("state_dict", "epoch")}
    write_checkpoint(kept | {"global_step": step, "ema": {"steps": step, "shadow": shadow, "average": {"std": std}}}, target)
    return target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m diffusion.average", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's folder, trained with ema=posthoc")
    parser.add_argument("std", type=float, help="the average's relative length, such as 0.07: the profile's standard deviation")
    parser.add_argument("--step", type=int, help="as of the latest snapshot up to this step; by default the latest of all")
    given = parser.parse_args()
    with one_sentence():
        print(write_average(given.run, given.std, given.step))


if __name__ == "__main__":
    main()
