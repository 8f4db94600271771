"""python -m benchmarks.cost [WORD ...] [--batch N] [--flops-per-second X] [--bandwidth X Y] [--measure] — what a run costs, on paper.

Of the run that WORDS choose as train.py's do: parameters, operations and bytes of an image in training, sampling and evaluation, and under
assumptions, which are printed with it, seconds on 1, 8 and 64 GPUs. Nothing is trained and no data are read. With --measure also steps on
this machine's CPU beside what was predicted of them from the rate of a matrix product, measured just before.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from benchmarks.flops import FLOAT, Machine, arithmetic, memory, operations, product
from diffusion.metrics.extractors.resnet56 import CifarResNet
from diffusion.mistyped import plainly
from diffusion.model import Model, network_of, variance_of
from diffusion.support.build import build, ways
from diffusion.support.errors import UserError, one_sentence

ROOT = Path(__file__).parent.parent
RANKS = (1, 8, 64)
MEASURED = (
    (["network=ddpm_cifar10"], 4),
    (["network=ddpm_cifar10", "network.channels=64"], 16),
    (["network=dit_s"], 4),
    (["network=mnist_cpu", "network.attention=[8]"], 64),
)  # words and batches


class Counting(nn.Module):
    """In the place of a network: an output of its shape, and how many images it was asked for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.images = channels, 0

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        self.images += len(x)
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


class Run:
    """The parts of a configuration that a cost follows from."""

    def __init__(self, words: Sequence[str]) -> None:
        self.config = config = declared(composition_of(words))
        self.codec, self.conditions = (build(config[name], name) for name in ("codec", "conditions"))
        self.variance = variance_of(config["objective"])
        network = partial(network_of, config["network"], self.codec, self.conditions, self.variance["learned_variance"])
        self.make = lambda: self.conditions.around(network())

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """x_t, labels and conditions of so many images, on the device of the context."""
        x, label = torch.empty(batch, *self.codec.shape), torch.empty(batch)
        asked = self.conditions.ask(torch.arange(batch, device="cpu"))
        return (x, label) if asked is None else (x, label, torch.empty(asked.shape, dtype=asked.dtype))

    def calls(self) -> int:
        """How often the network is asked for one image, guidance included, by the run's sampler on its grid."""
        channels = self.codec.shape[0] * (1 + self.variance["learned_variance"])
        schedule, parameterization = (build(self.config[name], name) for name in ("schedule", "parameterization"))
        counting = Counting(channels)
        parts = {"network": counting, "schedule": schedule, "parameterization": parameterization, "codec": self.codec, **self.variance}
        denoiser = build(self.config["task"], "task", parts | self.conditions.network())
        recipe = Model(denoiser.eval(), self.codec, self.conditions, self.config).recipe(**ways(self.config)["main"])
        with torch.no_grad():
            recipe([0], self.conditions.ask(torch.arange(1)))
        return counting.images

    @property
    def averages(self) -> int:
        """Averages of the weights that are kept."""
        return 1 + len(self.config["ema"].get("stds", ()))


def composition_of(words: Sequence[str]) -> dict[str, Any]:
    """What train.py composes of these words."""
    sys.path.append(str(ROOT / "tests"))
    from composing import composed

    return composed(*words)


def declared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what follows from the data as its data set declares it, unread. Raises UserError for one that does not."""
    data = config["dataset"]
    if config["codec"].get("data_shape", ()) is None:
        if not (data.get("image_size") and data.get("channels")):
            raise UserError("The data set does not say how large its images are: say dataset.image_size=N and dataset.channels=3.")
        size = data["image_size"]
        sides = [size, size] if isinstance(size, int) else list(size)
        config = {**config, "codec": {**config["codec"], "data_shape": [*sides, data["channels"]]}}
    if config["conditions"].get("num_classes", 0) is None:
        config = {**config, "conditions": {**config["conditions"], "num_classes": data.get("num_classes") or 0}}
    return dict(config)


def evaluation() -> dict[str, int]:
    """Operations that the networks of metrics take for an image, those of Inception-v3 at 299 x 299 as torchvision has it."""
    from torchvision.models import inception_v3

    with torch.device("meta"):
        resnet, inception = CifarResNet(9).eval(), inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
        with torch.no_grad():
            found = {name: operations(partial(net, torch.empty(1, 3, side, side))) for name, net, side in
                     (("ResNet-56, 32 px", resnet, 32), ("Inception-v3, 299 px", inception, 299))}  # fmt: skip
    return found


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def quantity(value: float, unit: str = "") -> str:
    """Three figures and a prefix: 12.1 G, 35.7 M."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def on_paper(run: Run, machine: Machine, batch: int) -> list[str]:
    """The tables, in Markdown."""
    cost, kept, calls = arithmetic(run.make, run.inputs), memory(run.make, run.inputs, run.averages), run.calls()
    sampled, seconds = calls * cost.forward, 1 / machine.rate
    lines = ["| what | of an image | seconds, 1 GPU, 10,000 images |", "| --- | --- | --- |"]
    counts = {"forward": cost.forward, "training step": cost.step, f"sampling, {calls} calls": sampled}
    counts |= evaluation() if run.config["metric"] else {}
    lines += [row(name, quantity(count, "FLOP"), f"{1e4 * count * seconds:.3g}") for name, count in counts.items()]
    lines += ["", "| parameters | weights | gradients | Adam | averages | activations of an image | with a batch of " + f"{batch:,} |"]
    lines += ["| --- " * 7 + "|"]
    sizes = (kept.weights, kept.weights, 2 * kept.weights, kept.averages, kept.activations, kept.states + batch * kept.activations)
    lines += [row(quantity(kept.weights / FLOAT), *(quantity(size, "B") for size in sizes))]
    lines += ["", "| GPUs | images | step, sums hidden | step, sums after | images/s, hidden | of ideal | sums bind below |"]
    lines += ["| --- " * 7 + "|"]
    alone = machine.step(cost, kept.weights, batch, 1)
    for ranks in RANKS:
        best, worst = (machine.step(cost, kept.weights, batch, ranks, hidden) for hidden in (True, False))
        binds = f"{machine.binding_batch(cost, kept.weights, ranks):.3g} images a GPU" if ranks > 1 else "-"
        steps = (f"{1e3 * best:.3g} ms", f"{1e3 * worst:.3g} ms", quantity(ranks * batch / best), f"{100 * alone / best:.0f} %")
        lines += [row(ranks, ranks * batch, *steps, binds)]
    return [*lines, "", *assumptions(machine)]


def assumptions(machine: Machine) -> list[str]:
    """What is assumed and was not measured."""
    return [
        "Assumptions, none of them measured:",
        f"* a GPU reaches {quantity(machine.rate, 'FLOP/s')} in training, sampling and evaluation alike (--flops-per-second);",
        f"* it sends {quantity(machine.inside, 'B/s')} to others of its machine of {machine.gpus}, {quantity(machine.between, 'B/s')} to "
        "those of other machines (--bandwidth), and latency is nothing;",
        "* gradients are summed in float32 by a ring, hidden behind the backward pass but for none of it, or not at all;",
        "* data, the optimizer, norms and activation functions take no time;",
        "* what is kept for the gradients is float32; under bf16-mixed it is between half of that and all.",
    ]


def matmul_rate(side: int = 1024, seconds: float = 1.0) -> float:
    """Operations a second of processor time of a float32 matrix product on this machine, the median of those made in so many seconds."""
    (multiply, work), times = product(side, "cpu", torch.float32), []
    multiply()
    until = time.process_time() + seconds
    while (start := time.process_time()) < until:
        multiply()
        times.append(time.process_time() - start)
    return work / median(times)


def step_seconds(run: Run, batch: int, rounds: int = 3) -> float:
    """The median of a training step's forward and backward, float32, after one that is not counted, in processor time, which what else the
    machine does disturbs least."""
    network, given, times = run.make(), run.inputs(batch), []
    given = (torch.randn_like(given[0]), torch.rand_like(given[1]), *(torch.zeros_like(cond) for cond in given[2:]))
    for _ in range(1 + rounds):
        start = time.process_time()
        network(*given).square().mean().backward()
        times.append(time.process_time() - start)
    return median(times[1:])


def beside_measured(rounds: int) -> list[str]:
    """Predicted and measured steps on this CPU, the rate measured before each."""
    lines = [f"{torch.get_num_threads()} thread(s), float32, seconds of processor time", ""]
    lines += ["| words | batch | FLOP | matmul, GFLOP/s | predicted, s | measured, s | measured / predicted |", "| --- " * 7 + "|"]
    for words, batch in MEASURED:
        run = Run(["dataset=synthetic", "dataset.image_size=32", "conditions=none", "objective=simple", *words])
        cost, rate = arithmetic(run.make, run.inputs), matmul_rate()
        work, found = batch * cost.step, step_seconds(run, batch, rounds)
        said = (quantity(work), f"{rate / 1e9:.3g}", f"{work / rate:.3g}", f"{found:.3g}", f"{found * rate / work:.2f}")
        lines += [row(" ".join(words), batch, *said)]
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--batch", type=int, help="images on each GPU; by default what the words' batch_size says")
    parser.add_argument("--flops-per-second", type=float, default=1.4e14, help="that a GPU is assumed to reach")
    parser.add_argument(
        "--bandwidth", type=float, nargs=2, default=(4e11, 4e10), metavar=("INSIDE", "BETWEEN"), help="bytes/s of a GPU in a ring"
    )
    parser.add_argument("--measure", action="store_true", help="also steps on this CPU")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    sys.argv = ["train.py", *args.words]  # whose words they are, by which a mistyped one is explained
    with one_sentence(HydraException, OmegaConfBaseException, say=plainly):
        if args.rounds < 1 or (args.batch is not None and args.batch < 1):
            raise UserError(f"--batch={args.batch} and --rounds={args.rounds} should be at least 1.")
        run, machine = Run(args.words), Machine(args.flops_per_second, *args.bandwidth)
        print(*on_paper(run, machine, args.batch or run.config["batch_size"]), sep="\n")
        if args.measure:
            print("", *beside_measured(args.rounds), sep="\n")


if __name__ == "__main__":
    main()
