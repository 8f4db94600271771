"""A model that can be sampled: a denoiser, the codec of its space, and the conditions it knows. `assemble` makes it, for training and for
loading."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from diffusion.generate import HALVES, Recipe
from diffusion.guidance import Guidance, doubts
from diffusion.reconstruction import Autoencoding
from diffusion.support.build import asks_for, build, changed, locate, wanted, ways
from diffusion.support.devices import AUTO, fastest, laid_out
from diffusion.support.errors import UserError
from diffusion.typing import Codec, Conditions, Denoise, device_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A denoiser with the codec of its space and the conditions it knows.

    `config` is the run's, {} for none. `diffusion.checkpoint.load` sets the other fields: `folder` is the run's folder, or one in another
    format; `path` the checkpoint's file, written at `step`; `weights` the hash of the weights; `ema` says which average they are, None for
    the last weights."""

    denoiser: Any  # a Denoiser, anything that is called like one, or a NoisyClassifier
    codec: Codec
    conditions: Conditions
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    path: Path | None = None
    step: int = 0
    weights: str | None = None
    ema: Mapping[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """What the weights are, as plain data for a passport: the run's folder, the step, their hash, which average they are."""
        return {"run": self.folder and self.folder.absolute().name, "step": self.step, "weights": self.weights, "ema": self.ema}

    @property
    def samples(self) -> Path:
        """Where its images go: into its run's folder, or to samples/NAME here, since a folder in another format is not ours to write to."""
        if self.folder is None:
            return Path("samples")
        return self.folder / "samples" if self.path else Path("samples", self.folder.absolute().name)

    def to(self, device: torch.device | str, precision: str | None = None) -> Self:
        """Move the denoiser; returns this model. With precision=bf16-true or 16-true its weights are of that type from then on, and take
        half the memory."""
        laid_out(self.denoiser.to(device), torch.device(device))
        if precision in HALVES:
            for weight in self.denoiser.parameters():  # and no buffer: frequencies stay exact
                weight.data = weight.data.to(HALVES[precision])
        return self

    def size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """(height, width) of the data, where None stands for the model's own; None if both are None. Raises ValueError for vectors, which
        have none, and for what is no size."""
        if height is None and width is None:
            return None
        if len(self.codec.shape) != 3:
            raise ValueError("Vectors have no height and width: leave both out.")
        own_height, own_width = self.codec.decode(torch.empty(0, *self.codec.shape)).shape[1:3]  # of pictures, where x_0 is their latents
        size = own_height if height is None else height, own_width if width is None else width
        if min(size) < 1:
            raise ValueError(f"height={size[0]} and width={size[1]} should be at least 1 pixel.")
        return size

    def recipe(
        self,
        sampler: Any = None,
        grid: Any = None,
        guidance: Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        batch_size: int | None = None,
        precision: str | None = None,
        size: tuple[int, int] | None = None,
        graphs: bool = False,
    ) -> Recipe:
        """The recipe with this sampler and grid, each an object or its configuration, and with `guidance`, a sequence or a mapping of
        stages, each a function of the denoiser or its configuration, the last one outermost. `size` is the images' (height, width) where it
        is not that of training. With `graphs` a GPU is told each call at once (see `Recipe`). What is None is the run's own, if the model
        is of a run.

        Raises ValueError or UserError where they do not fit each other or the model, and for what is neither given nor a run's."""
        own = ways(self.config)["main"] if self.config else {"guidance": {}}
        codec = self.codec.sized(*size) if size else self.codec
        sampler, grid = (walker(own.get(k) if v is None else v, k) for k, v in (("sampler", sampler), ("grid", grid)))
        if getattr(sampler, "needs_variance", False) and not getattr(self.denoiser, "learned_variance", False):
            raise ValueError(
                "sampler.variance=learned needs a model with a learned variance: say sampler.variance=auto, or objective=hybrid."
            )
        denoiser = self.guided(own["guidance"] if guidance is None else guidance, {"sampler": sampler, "grid": grid, "codec": codec})
        if isinstance(self.denoiser, Autoencoding) and denoiser is not self.denoiser:
            raise UserError("What an autoencoder makes of a picture cannot be guided: leave guidance out, or say guidance=none.")
        for doubt in doubts(denoiser, codec):
            log.warning(doubt)
        conditions = denoiser.asks(self.conditions) if isinstance(denoiser, Guidance) else self.conditions
        run = {"sample_batch_size": 64, "precision": "32-true", "matmul_precision": "high", **self.config}
        said = run["precision"] if precision is None else precision
        return Recipe(
            denoiser,
            sampler,
            grid,
            codec.shape,
            codec,
            conditions,
            run["sample_batch_size"] if batch_size is None else batch_size,
            fastest(device_of(denoiser).type) if said == AUTO else said,
            run["matmul_precision"],
            graphs,
            self.denoiser,
        )

    def guided(self, guidance: Mapping[str, Any] | Sequence[Any], offered: Mapping[str, Any]) -> Denoise:
        """The denoiser inside stages of guidance, the last one outermost; what is `offered` goes to the stages that ask for it."""
        offered = {**offered, "conditions": self.conditions}
        stages = guidance if isinstance(guidance, Mapping) else {str(i): stage for i, stage in enumerate(guidance)}
        denoiser: Denoise = self.denoiser
        for name, stage in stages.items():
            key = f"guidance.{name}"
            if callable(stage):
                denoiser = stage(denoiser, **wanted(stage, offered))
            elif isinstance(stage, Mapping) and "_target_" in stage:
                denoiser = build(stage, key, offered, denoiser=denoiser)
            else:
                raise ValueError(f"{key} is not one of guidance's stages: nothing says what it builds.")
        return denoiser


def walker(said: Any, key: str) -> Any:
    """The sampler or grid (`key`) of this configuration, or the object itself. Raises ValueError for what is none."""
    if not callable(made := build(said, key)):
        raise ValueError(f"{key}={made} is not a {key}: give an object of diffusion.{key}s, or its configuration.")
    return made


def assemble(config: Mapping[str, Any], home: Path | None = None) -> Model:
    """The model that a resolved configuration describes, with the weights it begins with (from torch's random state).

    Settings that follow from the data (see `completed`) are read from the data set if the configuration lacks them. `home` is the folder of
    the run, if it is there already, for a codec that has a copy of itself in it. The model's configuration is this one, with the settings
    of its network that follow from the size of latents.

    Raises ValueError or UserError with one sentence for what does not fit."""
    if config["codec"].get("data_shape", ()) is None:
        config = completed(config, build(config["dataset"], "dataset").load(), home)
    codec = build(config["codec"], "codec", {"home": home})
    conditions = build(config["conditions"], "conditions", {"dataset": config.get("dataset")})
    config = {**config, "network": fitted(config["network"], codec)}
    variance = variance_of(config["objective"])
    network = conditions.around(network_of(config["network"], codec, conditions, variance["learned_variance"]))
    schedule, parameterization = build(config["schedule"], "schedule"), build(config["parameterization"], "parameterization")
    parts = {"network": network, "schedule": schedule, "parameterization": parameterization, "codec": codec, **variance}
    return Model(build(config["task"], "task", parts | conditions.network()), codec, conditions, config)


def network_of(settings: Mapping[str, Any], codec: Codec, conditions: Conditions, learned_variance: bool) -> Any:
    """The network of these settings, told what follows from the codec, the conditions and the variance. Raises UserError where a network of
    pictures is given vectors."""
    channels, *size = codec.shape
    told = {"in_channels": channels, "out_channels": channels * (1 + learned_variance), **conditions.network()}
    if size:  # vectors have none
        told["image_size"] = size[0] if len(set(size)) == 1 else size
    elif asks_for(settings, "image_size"):
        raise UserError("The data are vectors, and this network is one of pictures; say network=mlp.")
    return build(settings, "network", told)


def variance_of(objective: Mapping[str, Any]) -> dict[str, Any]:
    """What a denoiser is told of its variance: whether this objective trains one, and with which fixed one it trains the mean. torch's
    random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        made = build(objective, "objective")
    return {"learned_variance": made.learned_variance, "fixed_variance": getattr(made, "fixed_variance", None)}


def completed(config: Mapping[str, Any], data: Any, home: Path | None = None) -> dict[str, Any]:
    """The configuration with the settings that follow from the data: an item's shape, the data's statistics, the classes' number and
    frequencies.

    `data` is a `diffusion.data.ImageSet`, `home` as for `assemble`. With them, a run's config.yaml builds the model without its data
    set."""
    parts = {name: changed(config[name], build(config[name], name, {"home": home}).facts(data)) for name in ("codec", "conditions")}
    return {**config, **parts}


def fitted(network: Mapping[str, Any], codec: Codec) -> Mapping[str, Any]:
    """A network's settings, which were chosen for pictures, for the latents of this codec: what its class makes of them in
    `fitted(settings, size)`, if it does."""
    if getattr(codec, "factor", 1) == 1:
        return network
    fit = getattr(locate(network["_target_"]), "fitted", None)
    return network if fit is None else {**network, **fit(network, codec.shape[1:])}
