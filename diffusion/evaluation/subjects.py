"""What is measured: a trained run, the exact denoiser of a data set, or images drawn from the data set itself."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.checkpoint import load, read
from diffusion.codecs import Pixels
from diffusion.data.cache import ImageSet
from diffusion.evaluation.tables import FLOOR
from diffusion.oracles import EmpiricalDistribution
from diffusion.support.build import build
from diffusion.support.errors import UserError

EXACT = "exact"


class Subject(NamedTuple):
    """What is measured: a denoiser, its codec, the run's config and what its lines say; `data`, the images it is measured against."""

    denoiser: Any
    codec: Pixels
    config: dict
    data: ImageSet
    facts: dict
    ema: dict | None = None


def trained(config: dict, device: torch.device) -> Subject:
    """A run's denoiser. Raises UserError where there is none."""
    run = load(config["ckpt"], config["averaged"])
    step, data = read(run.path)["global_step"], build(config["dataset"] or run.config["dataset"], "dataset").load()
    facts = {"step": step, "images": step * run.config["batch_size"] * run.config["accumulate"]}
    ema = {"decay": run.config["task"]["ema"]["decay"]} if config["averaged"] else None
    return Subject(run.denoiser.to(device), run.codec, run.config, data, facts, ema)


def exact(config: dict, device: torch.device) -> Subject:
    """The exact denoiser of a data set: all that a table shows of it is the samplers' own error. Raises UserError for no data set."""
    if not config["dataset"]:
        raise UserError(f"ckpt={EXACT} is the exact denoiser of a data set: say which by dataset=digits.")
    data, codec = build(config["dataset"], "dataset").load(), Pixels()
    labels = None if data.labels is None else torch.from_numpy(np.array(data.labels)).to(device)
    images = codec.encode(torch.from_numpy(np.array(data.images))).to(device)
    denoiser = EmpiricalDistribution(images, build(config["schedule"], "schedule"), labels)
    return Subject(denoiser, codec, {"dataset": config["dataset"], "metric": {}}, data, {"step": 0, "images": 0})


@dataclass(frozen=True)
class Drawn:
    """In a recipe's place: images drawn from the data set itself, of the class asked for; what their distance is, no sampler betters
    but by chance."""

    data: ImageSet = field(repr=False)
    batch_size: int = 256

    def __call__(self, seeds: list[int], cond: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 images [n, h, w, c]: image i is drawn, with replacement, by seed i."""
        everything = np.arange(len(self.data))
        among = [everything] * len(seeds) if cond is None else [everything[self.data.labels == int(c)] for c in cond]
        chosen = [int(np.random.default_rng(seed).choice(rows)) for seed, rows in zip(seeds, among, strict=True)]
        return torch.from_numpy(np.array(self.data.images[chosen]))

    def describe(self) -> dict:
        """A recipe's part of the passport."""
        return {"sampler": {"name": FLOOR}, "nfe": 0, "guidance": None}
