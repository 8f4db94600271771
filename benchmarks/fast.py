"""python -m benchmarks.fast --weights PATH/resnet56.th [CANDIDATE ...] [--seeds 0 1 2] [--steps 800] — small runs for cifar10_fast.

Trains each candidate with each seed on CIFAR-10: a narrow U-Net, equal steps of equal batches, the same images, noise and first weights
for all candidates of a seed. Measures the averaged weights by two things that weight no level of noise as a candidate's loss does: the
error of x_0 on test images at fixed levels, and fd-resnet56 of 1,000 images by 12 steps of DPM++ 2M. A run that is done is not made again;
a table of all that are done is printed, each figure with the standard error of its mean over seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from diffusion.data import CIFAR10
from diffusion.data.stream import flip
from diffusion.generate import generate
from diffusion.grids import EDM as Grid
from diffusion.metrics import FrechetDistance, ResNet56
from diffusion.model import Model, assemble
from diffusion.samplers import DPMPP2M
from diffusion.support.build import build
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import atomic, require_writable
from diffusion.training.power_ema import Power

ROOT = Path(__file__).parent.parent
NETWORK = [
    *("dataset=cifar10", "metric=none", "conditions=classes", "network=ddpm_cifar10", "network.channels=16", "network.multipliers=[1,2,2]"),
    *("network.res_blocks=1", "network.attention=[8]", "network.scale_shift=true", "network.dropout=0"),
]
EDM = ["schedule=edm", "parameterization=edm", "objective=edm", "times=log_normal"]
CANDIDATES = {
    "edm": EDM,
    "edm_later": [*EDM, "times.mean=-0.4", "times.std=1.0"],
    "edm_wider": [*EDM, "times.mean=-0.8", "times.std=1.6"],
    "edm2": ["schedule=edm", "parameterization=edm", "objective=edm2", "times=log_normal", "times.mean=-0.4", "times.std=1.0"],
    "min_snr": ["schedule=cosine", "parameterization=v", "objective=min_snr", "times=uniform"],
    "min_snr_asymmetric": ["schedule=cosine", "parameterization=v", "objective=min_snr", "times=asymmetric"],
    "flow": ["schedule=flow", "parameterization=velocity", "objective=simple", "times=logit_normal"],
}
STDS = (0.05, 0.10, 0.20)  # lengths of averages; images are of the second
LEVELS = torch.linspace(-3, 3, 7, dtype=torch.float64)  # of log(sigma/alpha)
BATCH, LR, WARMUP, IMAGES, TEST = 32, 2e-3, 100, 1000, 128


def trained(words: Sequence[str], seed: int, steps: int, data: Any) -> tuple[Model, list[Power]]:
    """A model after so many steps, and its averages."""
    sys.path.append(str(ROOT / "tests"))
    from composing import composed

    config = composed(*NETWORK, *words, "codec.data_shape=[32,32,3]", "conditions.num_classes=10")
    torch.manual_seed(seed)
    model = assemble(config)
    objective = build(config["objective"], "objective", {"span": model.codec.range})
    times = build(config["times"], "times", {"num_timesteps": model.denoiser.schedule.num_timesteps})
    weights = [*model.denoiser.parameters(), *getattr(objective, "parameters", list)()]
    optimizer, averages = torch.optim.Adam(weights, LR, (0.9, 0.99), fused=True), [Power(std).start(model.denoiser) for std in STDS]
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        index, mirrored, kept = (torch.rand(BATCH, generator=generator) for _ in range(3))
        index = (index * len(data.images)).long()
        x0 = model.codec.encode(flip(torch.from_numpy(data.images[index.numpy()]), mirrored))
        cond = model.conditions.of(torch.from_numpy(data.labels[index.numpy()]).long())
        cond = torch.where(kept < 0.1, model.conditions.null(cond), cond)
        eps = torch.randn(x0.shape, generator=generator)
        t, weight = times(BATCH, model.denoiser.schedule)
        with torch.autocast("cpu", torch.bfloat16):
            loss = (weight * objective(model.denoiser, x0, t, eps, cond)["loss"]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = LR * min(1, (step + 1) / WARMUP)
        optimizer.step()
        for average in averages:
            average.update(model.denoiser)
    model.denoiser.eval()
    return model, averages


def errors(model: Model, test: Any) -> list[float]:
    """The mean squared error of x_0 on test images at each level, always with the same noise."""
    x0, schedule = model.codec.encode(torch.from_numpy(test.images[:TEST])), model.denoiser.schedule
    cond = torch.from_numpy(test.labels[:TEST]).long()
    eps, found = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7)), []
    for level in LEVELS:
        t = schedule.time(-2 * level.reshape(1))
        alpha, sigma = (value.float() for value in schedule(t))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append((model.denoiser(alpha * x0 + sigma * eps, t.expand(TEST), cond).x0.float() - x0).square().mean().item())
    return found


def distance(model: Model, metric: FrechetDistance) -> float:
    """fd-resnet56 of images of the weights as they are."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        asked = torch.arange(IMAGES) % 10
        images: Tensor = generate(model.denoiser, DPMPP2M(), Grid(12), (3, 32, 32), range(IMAGES), asked, 100, model.codec)
    metric.reset()
    metric.update(images)
    return float(metric.numbers()[metric.name])


def measured(name: str, seed: int, steps: int, data: Any, test: Any, metric: FrechetDistance) -> dict[str, Any]:
    """A line of results."""
    model, averages = trained(CANDIDATES[name], seed, steps, data)
    line: dict[str, Any] = {"candidate": name, "seed": seed, "steps": steps, "errors": {}}
    for average in averages:
        with average.applied(model.denoiser):
            line["errors"][str(average.std)] = errors(model, test)
            if average.std == STDS[1]:
                line["fd"] = distance(model, metric)
    return line


def figure(values: Sequence[float]) -> str:
    """A mean with its standard error, if it is of several."""
    return f"{mean(values):.3g}" + (f" ± {stdev(values) / len(values) ** 0.5:.1g}" if len(values) > 1 else "")


def table(lines: Sequence[dict[str, Any]], steps: int) -> str:
    """Markdown: of each candidate the distance, and its errors over those of edm, level by level, paired by seed."""
    done = {(line["candidate"], line["seed"]): line for line in lines if line["steps"] == steps}
    rows = [f"| candidate | seeds | fd-resnet56@1k | {' | '.join(f'{level:g}' for level in LEVELS.tolist())} |"]
    rows += ["| --- " * (3 + len(LEVELS)) + "|"]
    for name in CANDIDATES:
        seeds = [seed for (candidate, seed) in done if candidate == name]
        paired = [(done[name, seed], done["edm", seed]) for seed in seeds if ("edm", seed) in done]
        if paired:
            ratios = [[a / b for a, b in zip(*(line["errors"][str(STDS[1])] for line in pair), strict=True)] for pair in paired]
            cells = [figure([row[i] for row in ratios]) for i in range(len(LEVELS))]
            rows.append(f"| {name} | {len(seeds)} | {figure([done[name, seed]['fd'] for seed in seeds])} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast", description=__doc__.splitlines()[0])
    parser.add_argument("candidates", nargs="*", metavar="CANDIDATE", help=f"of {', '.join(CANDIDATES)}; by default all")
    parser.add_argument("--weights", required=True, help="of ResNet-56")
    parser.add_argument("--data", default="data")
    parser.add_argument("--cache", default="data/cache")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/fast.jsonl"))
    args = parser.parse_args()
    if unknown := set(args.candidates) - CANDIDATES.keys():
        parser.error(f"{sorted(unknown)[0]} is no candidate: {', '.join(CANDIDATES)}.")
    if args.steps < 1 or min(args.seeds) < 0:
        parser.error("--steps should be at least 1, and --seeds at least 0.")
    with one_sentence(OSError):
        compare(args.candidates or list(CANDIDATES), args.seeds, args.steps, args.out, args)


def compare(names: Sequence[str], seeds: Sequence[int], steps: int, out: Path, args: argparse.Namespace) -> None:
    """Make the runs that the file has not, and print the table as it grows."""
    lines = runs_in(out)
    require_writable(out.parent, "--out")
    if not Path(args.weights).is_file():
        raise UserError(f"--weights {args.weights} is no file: give ResNet-56's, resnet56-4bfd9763.pth.")
    data, test = (CIFAR10(root=args.data, cache=args.cache, split=split).load() for split in ("train", "test"))
    metric = FrechetDistance(extractor=ResNet56(weights=args.weights, cache=args.cache), n=IMAGES, cache=args.cache)
    metric.setup(data, "cpu")
    for seed, name in product(seeds, names):
        if not any((line["candidate"], line["seed"], line["steps"]) == (name, seed, steps) for line in lines):
            lines.append(measured(name, seed, steps, data, test, metric))
            with atomic(out) as temporary:
                temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            print(table(lines, steps), flush=True)
    print(table(lines, steps))


def runs_in(out: Path) -> list[dict[str, Any]]:
    """The runs that a file has. Raises UserError for one that is not of this command."""
    try:
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        assert all({"candidate", "seed", "steps", "fd", "errors"} <= line.keys() for line in lines)
    except (ValueError, AttributeError, AssertionError):
        raise UserError(f"{out} has a line that is no run of this command: take it out, or say another --out.") from None
    return lines


if __name__ == "__main__":
    main()
