"""A model that can be sampled: a denoiser, the codec of its space, and the conditions it knows. `assemble` makes it, for training and for
loading."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusion.generate import Recipe
from diffusion.guidance import Guidance
from diffusion.support.build import build
from diffusion.typing import Codec, Conditions, Denoise


@dataclass(frozen=True)
class Model:
    """A denoiser with the codec of its space and the conditions it knows.

    `diffusion.checkpoint.load` sets the other fields: `config` is the run's; `path` the checkpoint's file, written at `step`; `weights` the
    hash of the weights; `ema` says which average they are, None for the last weights."""

    denoiser: Any  # a Denoiser, anything that is called like one, or a NoisyClassifier
    codec: Codec
    conditions: Conditions
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path | None = None
    step: int = 0
    weights: str | None = None
    ema: Mapping[str, Any] | None = None

    def size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """(height, width), where None stands for the model's own; None if both are None."""
        if height is None and width is None:
            return None
        self.codec.sized(1, 1)  # raises ValueError for vectors
        own_height, own_width = self.codec.shape[1:]
        return height or own_height, width or own_width

    def recipe(
        self,
        sampler: Any,
        grid: Any,
        guidance: Mapping[str, Any] | Sequence[Any] = (),
        *,
        batch_size: int = 64,
        precision: str = "32-true",
        size: tuple[int, int] | None = None,
    ) -> Recipe:
        """The recipe with this sampler and grid, each an object or its configuration, and with `guidance`, a sequence or a mapping of
        stages, each a function of the denoiser or its configuration, the last one outermost. `size` is the images' (height, width) where it
        is not that of training.

        Raises ValueError or UserError where they do not fit each other or the model."""
        codec = self.codec.sized(*size) if size else self.codec
        sampler, grid = build(sampler, "sampler"), build(grid, "grid")
        low, high = codec.range or (None, None)
        offered = {"grid": grid, "low": low, "high": high, "conditions": self.conditions}
        stages = guidance if isinstance(guidance, Mapping) else {str(i): stage for i, stage in enumerate(guidance)}
        denoiser: Denoise = self.denoiser
        for name, stage in stages.items():
            key = f"guidance.{name}"
            if isinstance(stage, Mapping) and "_target_" not in stage:
                raise ValueError(f"{key} is not one of guidance's stages: nothing says what it builds.")
            denoiser = build(stage, key, offered, denoiser=denoiser) if isinstance(stage, Mapping) else stage(denoiser)
        conditions = denoiser.asks(self.conditions) if isinstance(denoiser, Guidance) else self.conditions
        return Recipe(denoiser, sampler, grid, codec.shape, codec, conditions, batch_size, precision)


def assemble(config: Mapping[str, Any]) -> Model:
    """The model that a resolved configuration describes, with the weights it begins with (from torch's random state).

    Settings that follow from the data (see `completed`) are read from the data set if the configuration lacks them.

    Raises ValueError or UserError with one sentence for what does not fit."""
    if config["codec"].get("data_shape", ()) is None:
        config = completed(config, build(config["dataset"], "dataset").load())
    codec, conditions = build(config["codec"], "codec"), build(config["conditions"], "conditions")
    learned = learned_variance(config["objective"])
    channels, *size = codec.shape
    told = {"in_channels": channels, "out_channels": channels * (1 + learned), **conditions.network()}
    if size:  # vectors have none
        told["image_size"] = size[0] if len(set(size)) == 1 else size
    network = build(config["network"], "network", told)
    schedule, parameterization = build(config["schedule"], "schedule"), build(config["parameterization"], "parameterization")
    parts = {"network": network, "schedule": schedule, "parameterization": parameterization, "learned_variance": learned}
    return Model(build(config["task"], "task", parts | conditions.network()), codec, conditions)


def learned_variance(objective: Mapping[str, Any]) -> bool:
    """Whether this objective trains a learned variance; torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return build(objective, "objective").learned_variance


def completed(config: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The configuration with the settings that follow from the data: an item's shape, the data's statistics, the classes' number and
    frequencies.

    `data` is a `diffusion.data.ImageSet`. With them, a run's config.yaml builds the model without its data set."""
    parts = {name: config[name] | build(config[name], name).facts(data) for name in ("codec", "conditions")}
    return {**config, **parts}


def ways(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ways to sample that a configuration names: `main`, its own sampler, grid and guidance, and its `samplers`, each of which holds
    only its differences from `main`."""
    main = {key: config[key] for key in ("sampler", "grid", "guidance")}
    return {"main": main} | {name: {**main, **changed(main, way)} for name, way in config.get("samplers", {}).items()}


def changed(own: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what was typed put over it, setting by setting; an object of another class is replaced as a whole."""
    result = deepcopy(dict(own))
    for key, value in typed.items():
        before = result.get(key)
        result[key] = deepcopy(value)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            another = value.get("_target_", before.get("_target_")) != before.get("_target_")
            result[key] = result[key] if another else changed(before, value)
    return result
