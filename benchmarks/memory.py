"""python benchmarks/memory.py [WORD ...] [--batch 32] [--device cpu] — a training step's memory, with and without network.checkpointing.

One step (x_t, the objective, gradients, Adam, the average of the weights) of `network=ddpm_cifar10`, or of the network that WORDS choose as
train.py's do, on random images, each way in a process of its own. "tensors" is the largest sum of the bytes of all tensors that are alive
at once, "resident" by how much the process has grown at its largest, or on a GPU what its allocator has given out at most.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent
GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside have made and that are alive; `peak` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return made


def one(words: list[str], batch: int, device: str, count: bool) -> dict[str, float]:
    """A step's peak in GiB, of tensors or of the process, and its seconds."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from composing import composed

    from diffusion.model import assemble
    from diffusion.support.build import build
    from diffusion.training.ema import EMA

    config = composed("dataset=synthetic", "dataset.image_size=32", "network=ddpm_cifar10", "objective=simple", "conditions=none", *words)
    torch.manual_seed(0)
    model = assemble(config)
    denoiser, objective = model.denoiser.to(device), build(config["objective"], "objective")
    average, optimizer = EMA().start(denoiser), torch.optim.Adam(denoiser.parameters())
    x0 = torch.randn(batch, *model.codec.shape, device=device)
    live, before, start = LiveBytes(), grown(device), time.perf_counter()

    def step() -> None:
        t = torch.rand(batch, device=device).clamp(min=1e-3)
        objective(denoiser, x0, t, torch.randn_like(x0))["loss"].mean().backward()
        optimizer.step()
        average.update(denoiser)

    if count:
        with live:
            step()
    else:
        step()
    peak = live.peak if count else grown(device) - before
    return {"parameters": sum(p.numel() for p in denoiser.parameters()), "peak": peak / GIB, "seconds": time.perf_counter() - start}


def grown(device: str) -> int:
    """The largest size so far, in bytes, of the process or, on a GPU, of what was allocated there."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=["tensors", "resident"], help="measure this alone, here")
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(one(args.words, args.batch, args.device, args.one == "tensors")))
    rows = {}
    for on in ("false", "true"):
        for what in ("tensors", "resident"):
            line = [
                __file__,
                *args.words,
                f"network.checkpointing={on}",
                f"--batch={args.batch}",
                f"--device={args.device}",
                f"--one={what}",
            ]
            said = subprocess.run([sys.executable, *line], check=True, stdout=subprocess.PIPE, text=True).stdout
            rows[on, what] = json.loads(said.splitlines()[-1])
    print(f"{rows['true', 'tensors']['parameters'] / 1e6:.1f} M parameters, {args.batch} images, float32, {args.device}\n")
    print("| network.checkpointing | tensors, GiB | resident, GiB | seconds |", "| --- " * 4 + "|", sep="\n")
    for on in ("false", "true"):
        print(f"| {on} | {rows[on, 'tensors']['peak']:.2f} | {rows[on, 'resident']['peak']:.2f} | {rows[on, 'resident']['seconds']:.1f} |")
    less = (f"{100 * (1 - rows['true', what]['peak'] / rows['false', what]['peak']):.0f} %" for what in ("tensors", "resident"))
    print(f"| less | {' | '.join(less)} | |")


if __name__ == "__main__":
    main()
