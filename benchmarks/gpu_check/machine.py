"""python -m benchmarks.gpu_check.machine cpu|cuda [--rates] — what this machine is, as JSON, and how fast it multiplies matrices.

The rate is that of products of large square matrices of random numbers, in TFLOP/s: the median of rounds, after a warm-up. A model's FLOPs
a second over it is its utilisation."""

import argparse
import json
import os
import platform
import statistics
import sys
import time

import torch

from benchmarks.flops import product

SIDES = {"cuda": 8192, "cpu": 1024}
KINDS = {"cuda": {"float32": ("highest", torch.float32), "tf32": ("high", torch.float32), "bf16": ("high", torch.bfloat16)}}
KINDS["cpu"] = {"float32": ("highest", torch.float32), "bf16": ("highest", torch.bfloat16)}


def facts(device: str) -> dict[str, str]:
    """What it is, in words."""
    cpu = {"python": platform.python_version(), "torch": torch.__version__, "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads"}
    if device == "cpu":
        return {"device": f"cpu ({platform.machine()})", **cpu}
    found = torch.cuda.get_device_properties(0)
    memory = f"{found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
    return {"device": f"cuda: {found.name}", "memory": memory, "CUDA": str(torch.version.cuda), **cpu}


def rate(device: str, kind: str, rounds: int = 10) -> float:
    """TFLOP/s."""
    precision, dtype = KINDS[device][kind]
    torch.set_float32_matmul_precision(precision)
    (multiply, work), seconds = product(SIDES[device], device, dtype), []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for number in range(rounds + 3):
        wait()
        started = time.perf_counter()
        multiply()
        wait()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return work / statistics.median(seconds) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", choices=list(KINDS))
    parser.add_argument("--rates", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here: say --device cpu, or see whether its driver is there.")
    rates = {kind: round(rate(args.device, kind), 3) for kind in KINDS[args.device]} if args.rates else {}
    print(json.dumps({"rates": rates} if args.rates else facts(args.device)))


if __name__ == "__main__":
    main()
