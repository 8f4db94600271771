"""python -m benchmarks.gpu_check.curve METRICS.jsonl OUT.png — a training's distance over its minutes, with its standard error."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.gpu_check.parts.training import distances, numbers


def draw(measured: list[dict], out: Path) -> None:
    """A curve for each distance of the file."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name in dict.fromkeys(line["metric"] for line in measured):
        points = [line for line in measured if line["metric"] == name]
        minutes = [line["minutes"] for line in points]
        errors = [line.get(f"{name}/error", 0.0) for line in points]
        axes.errorbar(minutes, [line["value"] for line in points], errors, marker="o", markersize=4, capsize=3, label=name)
    axes.set(xlabel="minutes of the training, evaluation included", ylabel="distance", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    draw(distances(numbers(args.metrics)), args.out)


if __name__ == "__main__":
    main()
