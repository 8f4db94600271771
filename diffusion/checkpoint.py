"""From a run's folder to what sampling needs: denoiser, codec and configuration."""

from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn

from diffusion.classifier import NoisyClassifier
from diffusion.codecs import Pixels
from diffusion.denoiser import Denoiser
from diffusion.support.build import build
from diffusion.support.errors import UserError


class Loaded(NamedTuple):
    """What `load` returns; `config` is the run's resolved config.yaml, `path` the checkpoint's file."""

    denoiser: Denoiser
    codec: Pixels
    config: dict
    path: Path


def find(path: str | Path) -> tuple[Path, Path]:
    """(run folder, checkpoint file) for a run's folder or one of its checkpoints. Raises UserError if there is none."""
    path = Path(path)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no checkpoint {file}; give a run's folder such as runs/NAME, or a .ckpt file in it.")
    folder = file.parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{file} is not in a run's folder: {folder / 'config.yaml'}, which says how to build the model, is missing.")
    return folder, file


def read(file: Path) -> dict:
    """A checkpoint's content, plain tensors and plain data. Raises UserError for a file that is not one."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{file} cannot be read as a checkpoint ({type(error).__name__}); it is damaged or of another kind.") from error


def load(path: str | Path, ema: bool = True, kind: type[nn.Module] = Denoiser) -> Loaded:
    """The model of a run, of the kind it should be, in evaluation mode on the CPU, with averaged weights or (ema=False) the last ones.

    Raises UserError if there is no such checkpoint, it does not fit the run's config.yaml, or it is another kind of model."""
    folder, file = find(path)
    config, checkpoint = yaml.safe_load((folder / "config.yaml").read_text()), read(file)
    task, codec = config["task"], build(config["task"]["codec"], "codec")
    denoiser = build(task["denoiser"], "denoiser")
    if not isinstance(denoiser, kind):
        raise UserError(f"{file} holds a {type(denoiser).__name__} where a {kind.__name__} is needed; give another run.")
    prefix = "denoiser."
    try:
        weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        denoiser.load_state_dict(weights | (checkpoint["ema"]["shadow"] if ema else {}))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not match the network that {folder / 'config.yaml'} describes.") from error
    return Loaded(denoiser.eval().requires_grad_(False), codec, config, file)


def denoiser(path: str | None) -> Denoiser:
    """A second run's denoiser, for guidance. Raises UserError if there is none."""
    return load(named(path)).denoiser


def classifier(path: str | None) -> NoisyClassifier:
    """A second run's classifier, for guidance. Raises UserError if there is none, or the run is not one of task=classifier."""
    return load(named(path), kind=NoisyClassifier).denoiser


def named(path: str | None) -> str:
    """The path. Raises UserError if it was left out."""
    if path is None:
        raise UserError("This guidance takes a second run: say which by guidance.ckpt=runs/NAME.")
    return path
