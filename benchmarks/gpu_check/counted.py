"""python -m benchmarks.gpu_check.counted RUN cpu|cuda — a run's parameters and the FLOPs of one image's step, as JSON.

A step's are those of the network's forward and backward pass, a multiply-add being two, counted by torch's own counter as it computes."""

import argparse
import json
from typing import Any

import torch

from benchmarks.flops import operations
from diffusion.checkpoint import load

IMAGES = 2


def counted(run: str, device: str) -> dict[str, Any]:
    model = load(run, averaged=False).to(device)
    model.denoiser.requires_grad_(True)
    x = torch.randn(IMAGES, *model.codec.shape, device=device)
    cond = model.conditions.ask(torch.arange(IMAGES))
    given = x, torch.full((IMAGES,), 0.5, device=device), None if cond is None else cond.to(device)
    forward = operations(lambda: model.denoiser(*given))
    step = operations(lambda: model.denoiser(*given).eps.mean().backward())
    parameters = sum(parameter.numel() for parameter in model.denoiser.network.parameters())
    return {"parameters": parameters, "forward": forward / IMAGES, "step": step / IMAGES, "precision": model.config["precision"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("device", choices=["cpu", "cuda"])
    args = parser.parse_args()
    print(json.dumps(counted(args.run, args.device)))


if __name__ == "__main__":
    main()
