"""python -m benchmarks.gpu_check.counted RUN — a run's parameters and the FLOPs of one image's step, as JSON."""

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from benchmarks.flops import arithmetic
from diffusion.checkpoint import load


def counted(run: str) -> dict[str, Any]:
    model = load(run, averaged=False)
    network, asked = model.denoiser.network.requires_grad_(True), model.conditions.ask(torch.arange(1))

    def inputs(batch: int) -> tuple[Tensor, ...]:
        given = torch.empty(batch, *model.codec.shape), torch.empty(batch)
        return given if asked is None else (*given, asked.to("meta"))

    parameters, cost = sum(p.numel() for p in network.parameters()), arithmetic(lambda: network.to("meta"), inputs)
    return {"parameters": parameters, "forward": cost.forward, "step": cost.step, "precision": model.config["precision"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    print(json.dumps(counted(parser.parse_args().run)))


if __name__ == "__main__":
    main()
