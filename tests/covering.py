"""What stands in conf/, cases of it that hold every pair of choices, and what a case samples by: a denoiser that is known."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest
import torch
import yaml
from composing import ROOT
from torch import Tensor, nn

from diffusion import checkpoint
from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.denoiser import Denoiser
from diffusion.generate import Recipe
from diffusion.model import Model
from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule
from diffusion.support.build import build, spread
from diffusion.typing import expand

Case = dict[str, Any]
STEPS, SHAPE, CLASSES = 4, (2, 3, 3), 3
CHEAPER = {"langevin": {"walk": 2}, "rk45": {"rtol": 1e-2, "atol": 1e-2}}  # the same code, fewer calls
MORE = {"scale": 0.7, "ckpt": "another"}  # settings of the guidances that have them
AFTER_ANOTHER = {"rescale", "interval"}  # guidances that act on a guided model


def choices(*groups: str) -> dict[str, list[str]]:
    """The words of each group, but for `custom`, which names no class."""
    return {group: [path.stem for path in sorted((ROOT / "conf" / group).glob("*.yaml")) if path.stem != "custom"] for group in groups}


def file(group: str, choice: str) -> dict[str, Any]:
    """What a choice's file says of its own group."""
    content = yaml.safe_load((ROOT / "conf" / group / f"{choice}.yaml").read_text()) or {}
    return content.get(group, content)  # where the file says something of another group too


def meaningless(schedule: str, parameterization: str) -> bool:
    """An output that says nothing of x_0 where alpha = 0."""
    return build(file("parameterization", parameterization), "").needs_signal and build(file("schedule", schedule), "").reaches_noise


def unguided(sampler: str, guidance: str) -> bool:
    """A guidance that shifts the mean of a Gaussian, and a sampler that draws from none."""
    return guidance == "classifier_mean" and not hasattr(build(file("sampler", sampler), ""), "drawn")


def pairs(case: Mapping[str, Any]) -> set[frozenset]:
    """The choices of a case, two by two."""
    return {frozenset(pair) for pair in combinations(case.items(), 2)}


def covering(choices: Mapping[str, Sequence[Any]], refused: set[frozenset]) -> Iterator[Case]:
    """Cases that hold every pair of choices of two groups but the refused ones; each is filled in greedily, largest group first."""
    names = sorted(choices, key=lambda name: -len(choices[name]))
    left = {frozenset({(a, u), (b, v)}): None for a, b in combinations(names, 2) for u, v in product(choices[a], choices[b])}
    left = {pair: None for pair in left if pair not in refused}  # a dict keeps its order: the same cases everywhere
    while left:
        case = dict(sorted(next(iter(left)), key=lambda item: names.index(item[0])))
        for name in names:
            if name not in case:
                fresh = {v: {frozenset({(name, v), other}) for other in case.items()} for v in choices[name]}
                case[name] = max((v for v in fresh if not fresh[v] & refused), key=lambda v: sum(pair in left for pair in fresh[v]))
        for pair in pairs(case):
            left.pop(pair, None)
        yield {name: case[name] for name in names}


def parts(case: Case) -> tuple[dict, dict, dict]:
    """The configurations of a case's sampler, grid and guidance."""
    sampler = file("sampler", case["sampler"]) | CHEAPER.get(case["sampler"], {})
    grid = file("grid", case["grid"]) | {"steps": STEPS}
    names = ["cfg", case["guidance"]] if case["guidance"] in AFTER_ANOTHER else [case["guidance"]]
    stages = {key: stage for name in names for key, stage in file("guidance", name).items()}
    for key, value in MORE.items():
        if f"'{key}'" in str(stages):
            stages = spread(stages | {key: value}, "guidance")
    return sampler, grid, stages


class Known(nn.Module):
    """A network whose x_0 is known, asinh(x_t)/2 moved by its class: it answers in the words of any parameterization.

    It grows without end: where a combination is unstable, as PNDM's is on four steps of the cosine schedule, a bounded x_0 would become
    constant over the image, and its contrast, which Rescale divides by, mere rounding."""

    def __init__(self, schedule: Schedule, parameterization: Parameterization, learned: bool, shift: float = 0.2) -> None:
        super().__init__()
        self.schedule, self.parameterization, self.learned = schedule, parameterization, learned
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = (expand(v, x) for v in self.schedule(self.schedule.labelled(label).clamp(1e-4, 1)))
        x0 = torch.asinh(x) / 2
        if cond is not None:
            x0 = x0 + self.shift * (cond[:, None, None, None] + 1)
        out = self.parameterization.target(x0, (x - alpha * x0) / sigma, alpha, sigma)
        return torch.cat([out, 0.2 * torch.tanh(x)], 1) if self.learned else out


class Judge:
    """A classifier of noisy images: classes by the mean of the first channel."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.stack([-((x[:, 0].mean((1, 2)) - c) ** 2) for c in range(CLASSES)], 1)


def recipe(case: Case, monkeypatch: pytest.MonkeyPatch, device: torch.device | str = "cpu") -> Recipe:
    """A case's way to sample, on a device; a second run, where a guidance wants one, is a second network."""
    schedule, read = (build(file(group, case[group]), group) for group in ("schedule", "parameterization"))
    denoiser, other = (Denoiser(Known(schedule, read, case["learned"], shift), schedule, read, case["learned"]) for shift in (0.2, 0.1))

    codec, conditions = Pixels((*SHAPE[1:], SHAPE[0])), Classes(CLASSES)

    def load(path: str, averaged: bool = True, kind: type = Denoiser) -> Model:
        return Model(other if kind is Denoiser else Judge(schedule), codec, conditions, weights="another")

    monkeypatch.setattr(checkpoint, "load", load)
    return Model(denoiser, codec, conditions).to(device).recipe(*parts(case))
