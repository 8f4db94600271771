"""A pixel model of ours as a folder in diffusers' format, which `DDPMPipeline.from_pretrained` or `DDIMPipeline.from_pretrained` opens."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from diffusion.codecs import Pixels
from diffusion.denoiser import Denoiser
from diffusion.foreign.card import card_of
from diffusion.foreign.files import imported
from diffusion.foreign.pipelines import MARK, theirs_of
from diffusion.foreign.scheduler import PARAMETERIZATIONS, SCHEDULES
from diffusion.foreign.unet2d import NAME, config_of
from diffusion.model import Model
from diffusion.networks import UNet
from diffusion.schedules.discrete import Betas
from diffusion.support.build import build
from diffusion.support.errors import UserError

# What a schedule of ours has beside its ends where diffusers knows it by a word; others are written as a list of betas.
USUAL = {"Linear": {}, "ScaledLinear": {}, "Sigmoid": {"tau": 6.0}, "Cosine": {"s": 0.008, "max_beta": 0.999}}
SPACINGS = {"Leading": "leading", "Trailing": "trailing", "Linspace": "linspace"}
DDIM = "DDIM"


def write_pipeline(model: Model, origin: Mapping[str, Any], folder: Path) -> None:
    """Write a model as a pipeline: its U-Net in safetensors, a scheduler, a card (README.md), and MARK, plain data about where it is from.

    Raises UserError for what diffusers has no counterpart of, by its name."""
    network, notes = unet_of(model), list(origin.get("notes", []))
    scheduler, settings, more = scheduler_of(model)
    diffusers, known = imported("diffusers"), null_class(model)
    unet = getattr(diffusers, NAME)(**config_of(network, settings_in_full(model), sizes(model), known)).eval()
    unet.load_state_dict(theirs_of(network, known))
    pipeline = DDIM + "Pipeline" if scheduler.startswith(DDIM) else "DDPMPipeline"
    getattr(diffusers, pipeline)(unet, getattr(diffusers, scheduler)(**settings)).save_pretrained(folder)
    about = {**origin, "notes": notes + more, "weights": model.weights}
    (folder / MARK).write_text(json.dumps({"null_class": known, "origin": about}, indent=2) + "\n")
    (folder / "README.md").write_text(card_of(model, pipeline, known, about))


def unet_of(model: Model) -> UNet:
    """The U-Net of a model of pixels. Raises UserError for a model of anything else."""
    network = getattr(model.denoiser, "network", None)
    if not isinstance(model.denoiser, Denoiser) or not isinstance(network, UNet):
        raise UserError(f"A {type(network or model.denoiser).__name__} has no counterpart in diffusers' {NAME}: its network is a U-Net.")
    if not isinstance(model.codec, Pixels) or model.codec.range != (-1.0, 1.0):
        raise UserError(f"diffusers' pipelines have pixels from -1 to 1, and codec={model.codec} of this model is another space.")
    return network


def settings_in_full(model: Model) -> dict[str, Any]:
    """The settings of a model's U-Net, those that its configuration leaves out too, with its details as an object."""
    usual = {key: parameter.default for key, parameter in signature(UNet).parameters.items()}
    return {**usual, **model.config["network"], "details": model.denoiser.network.details}


def sizes(model: Model) -> tuple[int, int]:
    """The (height, width) of a model's pictures."""
    _, height, width = model.codec.shape
    return height, width


def null_class(model: Model) -> bool:
    """Whether the last row of a model's classes stands for none, and has been learned."""
    return bool(getattr(model.conditions, "num_classes", 0) and getattr(model.conditions, "null_class", False))


def scheduler_of(model: Model) -> tuple[str, dict[str, Any], list[str]]:
    """(diffusers' class of scheduler, its settings, sentences about what of the run's own way to sample is not among them).

    Raises UserError for a schedule, or a meaning of the output, that has no counterpart."""
    denoiser, config = model.denoiser, model.config
    meant = type(denoiser.parameterization).__name__
    words = {ours: word for word, ours in PARAMETERIZATIONS.items()}
    if meant not in words:
        raise UserError(f"diffusers has no counterpart of parameterization={meant}, only of {', '.join(words)}.")
    sampler, notes = build(config["sampler"], "sampler"), []
    name = type(sampler).__name__
    ddim = name == DDIM and not denoiser.learned_variance
    if name != "DDPM" and not ddim:
        notes.append(f"The run samples by {name}; the scheduler is DDPM's, and another may be put in its place.")
    if ddim and (eta := float(sampler.eta)):  # which is no setting of diffusers' scheduler, but a word of its call
        notes.append(f"The run's DDIM has eta={eta}: say pipeline(..., eta={eta}), or eta={eta} to scheduler.step.")
    settings = {**betas_of(denoiser.schedule), "prediction_type": words[meant], **clipping(config["guidance"], notes)}
    settings |= spacing(build(config["grid"], "grid"), notes)
    if ddim:
        return "DDIMScheduler", settings, notes
    fixed = getattr(sampler, "variance", "fixed_small")
    variance = "learned_range" if denoiser.learned_variance else "fixed_small" if fixed == "auto" else fixed
    return "DDPMScheduler", {**settings, "variance_type": variance}, notes


def betas_of(schedule: Any) -> dict[str, Any]:
    """diffusers' settings of a schedule: a word and its ends, or a list of all betas. Raises UserError for one that has none."""
    name = type(schedule).__name__
    if not isinstance(schedule, Betas):
        raise UserError(
            f"diffusers' DDPM has no counterpart of schedule={name}, only of discrete ones by betas, such as linear and cosine."
        )
    found: dict[str, Any] = {"num_train_timesteps": schedule.num_timesteps, "rescale_betas_zero_snr": schedule.zero_terminal_snr}
    if name not in USUAL or any(getattr(schedule, key) != value for key, value in USUAL[name].items()):
        return found | {"trained_betas": schedule.betas().tolist()}
    word = next(word for word, ours in SCHEDULES.items() if ours == name)
    ends = {key: getattr(schedule, key) * schedule.scale for key in ("beta_start", "beta_end") if hasattr(schedule, key)}
    return found | {"beta_schedule": word, **ends}


def clipping(guidance: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """diffusers' clipping of x_0 by a run's stages of guidance; `notes` gets a sentence for any other that changes an image."""
    found: dict[str, Any] = {"clip_sample": False}
    for stage in guidance.values():
        name = stage["_target_"].rpartition(".")[2]
        low, high = (usual if stage.get(end) is None else stage[end] for end, usual in (("low", -1.0), ("high", 1.0)))
        if name == "Clip" and low == -high:
            found = {"clip_sample": True, "clip_sample_range": high}
        elif name != "ClassifierFree" or stage.get("scale") != 1:
            notes.append(f"The run's guidance {name} is not part of the pipeline.")
    return found


def spacing(grid: Any, notes: list[str]) -> dict[str, Any]:
    """diffusers' spacing of the time steps by a run's grid; `notes` gets a sentence for a grid that it does not have."""
    name = type(grid).__name__
    if name not in SPACINGS:
        notes.append(f"The run's grid {name} has no counterpart; the steps are spaced as by grid=trailing.")
    return {"timestep_spacing": SPACINGS.get(name, "trailing"), "steps_offset": getattr(grid, "offset", 0)}
