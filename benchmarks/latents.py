"""python benchmarks/latents.py [--minutes 10] [--runs runs/latents] [WORD ...] — diffusion in pixels and in latents, side by side.

Trains an autoencoder with the settings that its data set brings, then the same diffusion in pixels and in its latents for the same time
each, as many steps as a short run before it says, and prints a table of what they reached. WORDS are those of train.py and go to both,
`dataset=digits` (the default) and a metric among them. A run that is there is not made again. Measure on a machine with nothing else to do.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROBE = ["log_every=10", "eval_every=100000", "metric=none", "checkpoint_every=100000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", default=["dataset=digits"], metavar="WORD")
    parser.add_argument("--minutes", type=float, default=10, help="of each diffusion's training, without its evaluations")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/latents")
    args = parser.parse_args()
    data = [word for word in args.words if word.startswith("dataset")]
    vae = trained(args.runs, "autoencoder", ["task=autoencoder", *data])
    spaces = {"pixels": [], "latents": ["codec=autoencoder", f"codec.ckpt={vae}"]}
    rows = [row(vae)]
    for space, words in spaces.items():
        probe = trained(args.runs, f"{space}-probe", [*args.words, *words, "steps=60", *PROBE])
        config = yaml.safe_load((probe / "config.yaml").read_text())
        per_step = config["batch_size"] * config["accumulate"]
        steps = max(1, round(60 * args.minutes * rate(probe) / per_step))
        rows.append(row(trained(args.runs, space, [*args.words, *words, f"steps={steps}", f"eval_every={steps}"])))
    print("| run | x_0 | steps | images/s in training | minutes of training | last numbers |", "| --- " * 6 + "|", *rows, sep="\n")


def trained(runs: Path, name: str, words: list[str]) -> Path:
    """The folder of a run, made by train.py unless it is there."""
    folder = runs.resolve() / name
    if not (folder / "checkpoints/last.ckpt").exists():
        subprocess.run([sys.executable, "train.py", *words, f"name={name}", f"paths.runs={runs.resolve()}"], cwd=ROOT, check=True)
    return folder


def numbers(folder: Path) -> list[dict]:
    """The lines that a run recorded."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rate(folder: Path) -> float:
    """Images in a second of training: the median of what was logged, without the first step, which waits for everything once."""
    return statistics.median(line["images_per_second"] for line in numbers(folder) if "images_per_second" in line and line["step"] > 1)


def row(folder: Path) -> str:
    """A row of the table."""
    from diffusion.checkpoint import load

    lines, model = numbers(folder), load(folder)
    last = {key: value for line in lines for key, value in line.items() if "@" in key and "/" not in key}
    images = max(line["images"] for line in lines)
    said = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
    shape = " x ".join(map(str, model.codec.shape))
    return f"| {folder.name} | {shape} | {model.step} | {rate(folder):.0f} | {images / rate(folder) / 60:.1f} | {said} |"


if __name__ == "__main__":
    main()
