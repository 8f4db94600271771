"""The subjects of an evaluation: a trained run, the exact denoiser of a data set, images that are there already, or images drawn from the
data set itself."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.conditions import Originals, Unconditional
from diffusion.data import ImageSet
from diffusion.evaluation import EXACT
from diffusion.evaluation.given import GivenImages
from diffusion.evaluation.rows import FLOOR
from diffusion.generate import Made
from diffusion.metrics.reference import RealImages
from diffusion.model import Model, completed
from diffusion.oracles import EmpiricalDistribution
from diffusion.published import NOTHING, Published
from diffusion.support.build import asks_for, build
from diffusion.support.errors import UserError
from diffusion.support.trust import parsed, vet
from diffusion.typing import Conditions

# How an exact denoiser is sampled and measured by default.
PLAIN = {
    "sampler": {"_target_": "diffusion.samplers.DDPM"},
    "grid": {"_target_": "diffusion.grids.Trailing"},
    "guidance": {
        "cfg": {"_target_": "diffusion.guidance.ClassifierFree", "scale": 1.0},
        "clip": {"_target_": "diffusion.guidance.Clip"},
    },
    "metric": {},
    "precision": "32-true",
    "sample_batch_size": 256,
}


class Subject(NamedTuple):
    """The subject of an evaluation: a model, or the images that are there already, in its place; the device, the real images, and the
    `facts` that each line records of it, and the `published` numbers to be shown beside its own."""

    model: Model | GivenImages
    device: torch.device
    data: RealImages
    facts: dict[str, Any]
    published: Published = NOTHING
    made_of: str = ""  # the sha256 of the data that the model's images are made of: of an exact denoiser, and of reconstructions


def data_set(dataset: Mapping[str, Any]) -> ImageSet:
    """The images of a data set's configuration."""
    return build(dataset, "dataset").load()


def trained(model: Model, dataset: Mapping[str, Any], device: torch.device, real: RealImages | None = None) -> Subject:
    """A run's model, compared with this data set, or with these `real` images. Raises UserError for a run whose metrics are not to be
    trusted."""
    run = model.config
    vet({"metric": run["metric"]}, where=f"config.yaml of {model.path}")
    data, made_of = data_set(dataset) if real is None else real, ""
    if asks_for(run["conditions"], "dataset"):  # its images are reconstructions, of these data now
        model = replace(model, conditions=build(run["conditions"], "conditions", {"dataset": dataset}))
        made_of = data_set(dataset).sha256
    facts = {"step": model.step, "images": model.step * run["batch_size"] * run["accumulate"], "trained": words_of(model)}
    return Subject(model, device, data, facts, made_of=made_of)


def words_of(model: Model) -> dict[str, str]:
    """The words that a run was trained with, by key; none of an older version's, or of a checkpoint outside of a run's folder."""
    file = None if model.path is None else model.path.parents[1] / "words.yaml"
    said = parsed(file.read_text(), str(file)) if file and file.is_file() else {}
    typed = said.get("typed") if isinstance(said, dict) else None
    return {str(key): str(value) for key, value in typed.items()} if isinstance(typed, dict) else {}


def exact(config: Mapping[str, Any], device: torch.device) -> Subject:
    """The exact denoiser of a data set: a table of it shows the samplers' own error alone. Raises UserError for no data set."""
    if not config["dataset"]:
        raise UserError(f"ckpt={EXACT} is the exact denoiser of a data set: say which by dataset=digits.")
    data = build(config["dataset"], "dataset").load()
    known = completed(config, data)
    codec, conditions = build(known["codec"], "codec"), build(known["conditions"], "conditions")
    labels = conditions.labels(data)
    labels = None if labels is None else conditions.of(labels[:].to(device))
    images = codec.encode(torch.from_numpy(np.array(data.images))).to(device)
    null = {} if labels is None else {"null": conditions.null(labels[:1])[0]}
    denoiser = EmpiricalDistribution(images, build(config["schedule"], "schedule"), labels, **null)
    plain = PLAIN if codec.range else {**PLAIN, "guidance": {}}  # without a range there is nothing to clip to
    model = Model(denoiser, codec, conditions, {**plain, "dataset": config["dataset"]})
    return Subject(model, device, data, {"step": 0, "images": 0}, made_of=data.sha256)


@dataclass(frozen=True)
class Drawn:
    """Used in place of a recipe: images drawn from the data set itself, of the class or caption asked for. A sampler has a smaller distance
    than theirs only by chance. Raises UserError for an autoencoder, which is told its originals."""

    data: ImageSet = field(repr=False)
    conditions: Conditions = field(default_factory=Unconditional)
    batch_size: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.conditions, Originals):
            raise UserError("floor=true draws images from the data set, of which an autoencoder is told each; leave it out.")

    def __call__(self, seeds: Sequence[int], cond: Tensor | None = None) -> Made:
        """Images of the data set: image i is drawn, with replacement, by seed i. Raises UserError if none has its condition."""
        among = [np.arange(len(self.data))] * len(seeds) if cond is None else self.alike(cond)
        chosen = [int(np.random.default_rng(seed).choice(rows)) for seed, rows in zip(seeds, among, strict=True)]
        return Made(torch.from_numpy(np.array(self.data.images[chosen])), 0)

    def alike(self, cond: Tensor) -> list[np.ndarray]:
        """The numbers of the images that have each of the conditions cond [b, ...]."""
        labels = self.conditions.labels(self.data)
        known = None if labels is None else self.conditions.of(labels[:])
        if known is None:
            raise UserError(f"{self.data.name} does not say which of its images have the conditions that are asked for: say floor=false.")
        rows = [(known == c.to(known)).reshape(len(known), -1).all(1).nonzero()[:, 0].numpy() for c in cond]
        if not all(map(len, rows)):
            raise UserError(f"{self.data.name} has no image of a condition that is asked for: say floor=false, or ask for its captions.")
        return rows

    def computing(self) -> AbstractContextManager[None]:
        """There is nothing to compute."""
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """A recipe's part of the passport."""
        return {"sampler": {"name": FLOOR}, "guidance": None, "conditions": self.conditions.describe()}
