"""From a run's folder to a model that can be sampled."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from diffusion.classifier import NoisyClassifier
from diffusion.denoiser import Denoiser
from diffusion.foreign.published import folder_model, is_folder
from diffusion.model import Model, assemble
from diffusion.reconstruction import Autoencoding
from diffusion.shards import SHARDS, Parts, joined, mapped, sharded, tidy, write_shards
from diffusion.support.errors import UserError
from diffusion.support.files import PLACES, atomic, broken, seal, writing_in
from diffusion.support.hashes import tensors_hash
from diffusion.support.moved import brought_up
from diffusion.support.ranges import Decay, Images, Probability, Share, refused
from diffusion.support.ranks import rank_and_world
from diffusion.support.trust import parsed, trusting, vet, vet_source

# The groups of a run's configuration from which its model and its ways to sample are built.
MODEL = ("dataset", "codec", "conditions", "task", "network", "schedule", "parameterization", "objective")
LOADING: ContextVar[tuple[str, ...]] = ContextVar("second runs that are being loaded", default=())
WAYS = ("sampler", "grid", "guidance", "samplers")
AVERAGES = {"decay": Decay | None, "std": Probability}  # how a checkpoint says which average of the weights it has
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
log = logging.getLogger(__name__)


def find(path: str | Path) -> tuple[Path, Path]:
    """(run folder, checkpoint file) for a run's folder or one of its checkpoints. Raises UserError if there is none."""
    path = Path(path)
    file = path / "checkpoints" / LAST if path.is_dir() else path
    if path.is_dir() and not file.exists() and (previous := file.with_name(PREVIOUS)).is_file():
        log.warning("%s is not there; in its place the one before is used: %s.", file, previous)
        file = previous
    if not file.is_file():
        raise UserError(
            f"There is no checkpoint {file}; give a run's folder such as runs/NAME, a .ckpt file in it, or a folder in diffusers' "
            "format, which has a model_index.json."
        )
    folder = file.parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{file} is not in a run's folder: {folder / 'config.yaml'}, which says how to build the model, is missing.")
    return folder, file


def read(path: str | Path, whole: bool = True) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `find` finds, and its content, as `read_checkpoint` gives it. If a run's folder is given whose last one is
    damaged, it is the one before that, with a warning. Raises UserError if there is none that is whole; a checkpoint that was given by its
    name is not replaced."""
    _, file = find(path)
    try:
        return file, checked_checkpoint(read_checkpoint(file, whole), file)
    except UserError as damaged:
        previous = file.with_name(PREVIOUS)
        if file.name != LAST or not previous.is_file():
            raise
        if not Path(path).is_dir():
            raise UserError(f"{damaged} The one before it is {previous}.") from damaged
        try:
            content = checked_checkpoint(read_checkpoint(previous, whole), previous)
        except UserError as both:
            raise UserError(f"{damaged} So is the one before it: {both}") from damaged
        log.warning("%s In its place the one before is used: %s, of step %d.", damaged, previous, content["global_step"])
        return previous, content


def read_checkpoint(file: Path, whole: bool = True) -> dict[str, Any]:
    """A checkpoint's content, plain tensors and plain data, in one piece however many processes wrote it. Raises UserError for a file that
    is not one, or has changed since it was written.

    With whole=False tensors stay in their files until they are looked at, and a sharded one is as its `Parts`."""
    try:
        if broken(file):
            raise UserError(f"{file} is damaged: its content is not what its hash was made of.")
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=not whole)
        in_parts = isinstance(content, dict) and SHARDS in content
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{file} cannot be read as a checkpoint ({type(error).__name__}); it is damaged or of another kind.") from error
    if in_parts:
        content = joined(content, file)
    return mapped(content, lambda _, leaf: leaf[:] if isinstance(leaf, Parts) else leaf) if in_parts and whole else content


def checked_checkpoint(content: Any, file: Path) -> dict[str, Any]:
    """A checkpoint's content, if it has what a training writes of its weights, their average and its step. Raises UserError otherwise."""

    def tensors(node: Any) -> bool:
        return isinstance(node, dict) and all(isinstance(key, str) for key in node)

    whole = content if isinstance(content, dict) else {}
    ema, step = whole.get("ema"), whole.get("global_step")
    average = ({} if ema.get("average") is None else ema["average"]) if isinstance(ema, dict) else None
    found = {
        "state_dict": tensors(whole.get("state_dict")),
        "global_step": type(step) is int and 0 <= step < 2**53,
        "ema": isinstance(ema, dict) and tensors(ema.get("shadow")),
        "ema.average": isinstance(average, dict) and not any(refused(average[key], AVERAGES[key]) for key in AVERAGES if key in average),
    }
    for key, well in found.items():
        if not well:
            raise UserError(f"{file} does not say what its {key} is; it is damaged, or of another kind.")
    return whole


def write_checkpoint(content: Mapping[str, Any], file: Path, keep: Path | None = None) -> None:
    """Write plain tensors and plain data to `file`, with a hash that `read_checkpoint` compares. What it held before then has the name
    `keep`, if one is given. At each moment `file` is whole: what it was, or what it becomes."""
    if keep is not None and file.exists():
        with atomic(keep) as before:  # takes its name after the new one has taken that of `file`
            second_name(file, before)
            return write_checkpoint(content, file)
    with atomic(file) as temporary:
        with open(temporary, "wb") as opened:  # of a path torch does not say why it cannot be written
            torch.save(dict(content), opened)
        seal(temporary)


def write_together(content: Mapping[str, Any], file: Path, keep: Path | None = None) -> None:
    """`write_checkpoint` by all processes of a training, which all call it: by the first, or, of what holds a `Shard`, by each its part."""
    if sharded(content):
        write_shards(content, file, lambda skeleton: write_checkpoint(skeleton, file, keep))
    elif rank_and_world()[0] == 0:
        write_checkpoint(content, file, keep)
        if (file.parent / SHARDS).exists():  # of a training that was in parts
            tidy(file.parent)


def second_name(file: Path, other: Path) -> None:
    """A second name for a file; a copy where the file system has no such thing."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copy2(file, other)


def read_config(folder: Path) -> dict[str, Any]:
    """A run's resolved configuration in today's names; nothing of it is built. Raises UserError if it is not one."""
    file = folder / "config.yaml"
    config = parsed(file.read_text(), str(file))
    vet_source(config, str(file))  # a value of it may be put into a command's own configuration, where it would be resolved
    return checked(brought_up(config, str(file)), str(file))


def checked(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration, if it has what sampling and evaluation read of it. Raises UserError otherwise."""

    def built(node: Any) -> bool:
        return isinstance(node, dict) and isinstance(node.get("_target_"), str)

    found = {group: built(config.get(group)) for group in (*MODEL, "sampler", "grid")}
    for group in ("guidance", "metric"):
        found[group] = isinstance(config.get(group), dict) and all(built(stage) for stage in config[group].values())
    found |= {key: not refused(config.get(key), Images) for key in ("batch_size", "accumulate", "sample_batch_size")}
    found |= {key: isinstance(config.get(key, {}), dict) for key in ("ema", "samplers")}
    found |= {"paths": isinstance(config.get("paths", {}), dict), "p_uncond": not refused(config.get("p_uncond", 0.0), Share)}
    found["times"] = config.get("times") is None or built(config["times"])
    found["matmul_precision"] = config.get("matmul_precision", "high") in ("highest", "high", "medium")
    for key, well in found.items():
        if not well:
            raise UserError(f"{where} does not say what {key} is; the file is damaged, or it is not the configuration of a run.")
    return config


def load(path: str | Path, averaged: bool = True, kind: Any = Denoiser | Autoencoding, trust: Sequence[str] = ()) -> Model:
    """The model of a run, in evaluation mode on the CPU, with the averaged weights or the last ones; its network's module must be of this
    `kind`, a class or a union of some. Of a folder in diffusers' format, its model (`diffusion.foreign`).

    Only this package's classes, and a few of torch's, are built from a run's folder; `trust` names packages of yours beside them.

    Raises UserError if there is no such checkpoint, it does not fit the run's config.yaml, it is another kind of model, or its
    configuration names a class that is not trusted."""
    if is_folder(path):
        model = folder_model(path)
        return replace(of_kind(model, kind, path), weights=weights_hash(model.denoiser))
    folder, _ = find(path)
    config = read_config(folder)
    with trusting(trust), writing_in(PLACES.get() or [folder]):
        vet({group: config.get(group) for group in (*MODEL, *WAYS)}, where=str(folder / "config.yaml"))
        try:
            model = assemble(config, folder)
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError, MemoryError) as error:  # of a damaged file
            reason = str(error).splitlines()[0] if str(error) else "nothing more"
            raise UserError(f"{folder / 'config.yaml'} describes no model ({type(error).__name__}: {reason}).") from error
    file, checkpoint = read(path)
    of_kind(model, kind, file)
    prefix = "denoiser."
    try:
        weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        weights |= checkpoint["ema"]["shadow"] if averaged else {}
        model.denoiser.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not match the network that {folder / 'config.yaml'} describes.") from error
    model.denoiser.eval().requires_grad_(False)
    ema = checkpoint["ema"].get("average", {"decay": config["ema"].get("decay")}) if averaged else None
    step = checkpoint["global_step"]
    return replace(model, config=config, folder=folder, path=file, step=step, weights=weights_hash(model.denoiser), ema=ema)


def of_kind(model: Model, kind: Any, place: str | Path) -> Model:
    """The model, if its module is of this kind. Raises UserError otherwise."""
    if not isinstance(model.denoiser, kind):
        asked = " or ".join(one.__name__ for one in get_args(kind) or [kind])
        raise UserError(f"{place} holds a {type(model.denoiser).__name__} where a {asked} is needed; give another run.")
    return model


def weights_hash(module: nn.Module) -> str:
    """The hash of a model's weights, as the passport of a number names them."""
    return tensors_hash({name: p for name, p in module.named_parameters() if p.is_floating_point()})


def denoiser(ckpt: str | None = None) -> Denoiser:
    """A second run's denoiser, for guidance. Raises UserError if there is none."""
    return second(ckpt, Denoiser)


def classifier(ckpt: str | None = None) -> NoisyClassifier:
    """A second run's classifier, for guidance. Raises UserError if there is none, or the run is not one of task=classifier."""
    return second(ckpt, NoisyClassifier)


def second(ckpt: str | None, kind: type[nn.Module]) -> Any:
    """A second run's model. The passports of images that it guides name it by the hash of its weights.

    Raises UserError if the path was left out, or as `load` does."""
    if ckpt is None:
        raise UserError("This guidance takes a second run: say which by guidance.ckpt=runs/NAME.")
    if ckpt in LOADING.get():
        raise UserError(f"The run {ckpt} is guided by itself, without end; its config.yaml is damaged.")
    before = LOADING.set((*LOADING.get(), ckpt))
    try:
        model = load(ckpt, kind=kind)
    finally:
        LOADING.reset(before)
    model.denoiser.weights_hash, model.denoiser.codec = model.weights, model.codec
    model.denoiser.conditions = model.conditions  # of a classifier, what it tells apart
    return model.denoiser
