"""Whether samples show the objects that a prompt names, in the places that it names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.conditions import Text
from diffusion.metrics.base import UNCONDITIONAL, Metric, Numbers, abbreviated
from diffusion.metrics.intervals import dealt
from diffusion.metrics.objects import SceneClassifier, Scenes
from diffusion.metrics.reference import RealImages, facts
from diffusion.support.errors import UserError
from diffusion.support.hashes import tensors_hash
from diffusion.support.ranges import Several, Some
from diffusion.typing import Conditions

SPLITS = ("test", "heldout")  # combinations that training has, of other pictures, and those that it has not
REAL = 5000  # pictures of each split on which the classifier itself is tried
WORDS = ("prompt-places", "prompt-objects", "heldout-places", "heldout-objects")


class PromptAccuracy(Metric):
    """The share of n samples in which a classifier, which has seen real training pictures only, finds what a prompt asks for:

    prompt-places: each object in the place asked for. prompt-objects: both objects, wherever they are. Samples 0, 2, 4, ... are asked for
    by captions of `scenes`' split test, combinations that training has, and samples 1, 3, 5, ... by those of its split heldout, which it
    has not: heldout-places and heldout-objects. `facts` has, for each of them, the same classifier's share on those splits' own pictures
    (real; at most REAL of them), and the share of samples that would be right of another sample's prompt (chance).

    `groups`: with as many groups of images each number has a standard error, under NAME/error, by the jackknife.

    Raises ValueError for n below 4, and for 1 group or more than n / 4; UserError, from setup, for other data than those of `scenes`, and
    for a model that is not asked by texts."""

    higher_is_better = True
    found: list[Tensor]

    def __init__(self, scenes: Scenes, n: Several, cache: str | Path, groups: Some = 0) -> None:
        super().__init__()
        self.scenes, self.cache, self.groups = scenes, cache, groups
        self.name_by(n)
        self.keep("found", dtype=torch.int64)

    def name_by(self, n: int) -> None:
        self.keys = [f"{word}@{abbreviated(n)}" for word in WORDS]
        self.name, self.n = self.keys[0], n
        if n < 4:
            raise ValueError(f"{self.name} is of seen and of held-out combinations, two of each at least: metric.n={n} is too few.")
        if self.groups and not 2 <= self.groups <= n // 4:
            raise ValueError(f"metric.groups={self.groups} cannot give a standard error from n={n} images: use 0, or 2 to {n // 4}.")

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        if imageset.name != self.scenes.name:
            raise UserError(
                f"{self.name} asks for the scenes of {self.scenes.name}, and the data are {imageset.name}: leave the metric out."
            )
        if not isinstance(conditions, Text):
            raise UserError(f"{self.name} asks by prompts, and this model's conditions are not texts: say metric=none, or conditions=text.")
        self.classifier = SceneClassifier(self.scenes, self.cache)
        self.to(device)
        self.classifier.to(device)
        splits = [self.scenes.of_split(split) for split in SPLITS]
        self.captions = [data.captions for data in splits]
        self.asked = [torch.from_numpy(data.labels) for data in splits]
        layouts = torch.from_numpy(self.scenes.layouts())
        self.kinds = layouts.sort(1).values  # what a scene holds, wherever it is
        self.real = torch.cat(
            [
                self.right(self.classifier(torch.from_numpy(data.images[:REAL])).cpu(), asked[:REAL]).mean(0)
                for data, asked in zip(splits, self.asked, strict=True)
            ]
        )
        seen, heldout = (facts(data, min(REAL, len(data))) for data in splits)
        self.reference = seen | {"heldout": heldout}
        self.reset()

    def asks(self, conditions: Conditions) -> Conditions:
        """By the captions of both splits in turn."""
        if not isinstance(conditions, Text):  # refused by setup
            return conditions
        return replace(conditions, prompts=[self.of(self.captions, i) for i in range(self.n)])

    def of(self, splits: Sequence[Any], i: int) -> Any:
        """What image i is given of the lists of both splits."""
        among = splits[i % len(splits)]
        return among[i // len(splits) % len(among)]

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's images, uint8 [b, h, w, c], in the order of their numbers."""
        self.found.append(self.classifier(images))

    def right(self, found: Tensor, asked: Tensor) -> Tensor:
        """Whether scenes [n] that were found are those asked for, by their places and by their objects: [n, 2], 1 or 0, float64."""
        return torch.stack([found == asked, (self.kinds[found] == self.kinds[asked]).all(1)], 1).double()

    def compute(self) -> Numbers:
        """The four shares, and their standard errors. Raises ValueError unless all ranks together were given n images."""
        found = self.kept("found").cpu()
        self.require_n(len(found))
        numbers = torch.arange(self.n)
        asked = torch.stack([self.of(self.asked, i) for i in range(self.n)])
        kind = numbers % len(SPLITS)
        rows = torch.cat([kind[:, None].double(), self.right(found, asked)], 1)
        self.chance = torch.cat([self.by_chance(found[kind == k], asked[kind == k]) for k in range(len(SPLITS))])
        values = dict(zip(self.keys, shares_right([rows]), strict=True))
        if not self.groups:
            return values
        group = dealt(numbers, self.n, len(SPLITS)) % self.groups
        return values | self.jackknifed(self.keys, shares_right, [rows[group == g] for g in range(self.groups)])

    def by_chance(self, found: Tensor, asked: Tensor) -> Tensor:
        """The shares [2] that are right of the n (n - 1) pairs of a sample and another sample's prompt."""
        pairs = torch.stack([self.right(found, asked.roll(shift)).sum(0) for shift in range(1, len(found))])
        return pairs.sum(0) / (len(found) * (len(found) - 1))

    def facts(self) -> dict[str, Any]:
        """Of each number, the same share of real pictures, and by chance."""
        return super().facts() | {
            f"{key}/{word}": value
            for word, values in (("real", self.real), ("chance", self.chance))
            for key, value in zip(self.keys, values.tolist(), strict=True)
        }

    def passport(self) -> dict[str, Any]:
        prompts = [tensors_hash({"": scenes}) for scenes in self.asked]
        meaning = f"standard error over the images drawn, delete-a-group jackknife with {self.groups} groups of seen and held-out alike"
        return {
            "metric": self.name,
            "n": self.n,
            "quantisation": "uint8",
            "extractor": {
                "name": f"objects of {self.scenes.name}",
                "weights_hash": self.classifier.weights_hash,
                "dim": self.classifier.outputs,
                "resize": "none",
            },
            "reference": self.reference,
            "statistics": "",
            "settings": {"scenes asked for": prompts},
            "intervals": {"error": meaning} if self.groups else None,
        }


def shares_right(parts: Sequence[Tensor]) -> Tensor:
    """The shares [2 x splits] of rows [n, 3], each a split's number and what is right."""
    rows = torch.cat(list(parts))
    return torch.cat([rows[rows[:, 0] == k, 1:].mean(0) for k in range(len(SPLITS))])
