"""One training run: from a resolved configuration, plain data, to a folder with checkpoints, samples and metrics.jsonl.

`python -m diffusion.training.run CONFIG.yaml FOLDER PARENT [PACKAGE ...]` runs a rank of the run in FOLDER, for as long as the process of
the number PARENT lives; Lightning starts the other ranks so.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from diffusion.checkpoint import find, read, read_config
from diffusion.data import Serving, served
from diffusion.data.module import DataModule
from diffusion.latents import COPY
from diffusion.metrics import Metric
from diffusion.model import Model, assemble, completed
from diffusion.support.build import build, build_stages, construct, review, ways
from diffusion.support.devices import multiply_in
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import writable
from diffusion.support.host import keep_freed_memory
from diffusion.support.progress import doing
from diffusion.support.seeds import mixed
from diffusion.support.trust import trusting, vet
from diffusion.training.base import TrainingModule
from diffusion.training.callbacks.checkpoints import SealedIO, kept
from diffusion.training.callbacks.divergence import Divergence
from diffusion.training.callbacks.interruption import Interruption, owed
from diffusion.training.callbacks.record import Record
from diffusion.training.callbacks.time_limit import TimeLimit
from diffusion.training.compilation import compiled
from diffusion.training.fitting import require_fit, require_methods
from diffusion.training.initial import begin_from
from diffusion.training.launch import alone_in, follow, job, parting
from diffusion.training.loggers import quiet, run_of_its_own
from diffusion.training.machine import Unscale, precise, trainer_settings
from diffusion.training.sharding import require_shardable
from diffusion.typing import Codec

log = logging.getLogger(__name__)


def train(config: Mapping[str, Any], folder: Path, sources: Mapping[str, str] = {}, trust: Sequence[str] = ()) -> dict[str, float]:
    """Run `config` in `folder`, from its start or, where `resume` is set, from its last checkpoint. Returns the last numbers.

    Nothing of the run's folder is touched before all that can refuse has been tried. Raises UserError or ValueError with one sentence for
    an error that the user can correct."""
    with trusting(trust):
        return _train(config, folder, sources, trust)


def _train(config: Mapping[str, Any], folder: Path, sources: Mapping[str, str], trust: Sequence[str]) -> dict[str, float]:
    quiet()
    config = precise(config)
    multiply_in(config["matmul_precision"])
    require_possible(config, folder)
    settings = trainer_settings(config)
    if settings["accelerator"] == "cpu":
        keep_freed_memory()
    dataset = build(config["dataset"], "dataset")
    home = folder if config["resume"] else None
    with doing(f"reading {dataset.name}"):
        images = dataset.load()  # on every rank: one makes the cache, and all refuse with the same sentence
        config = completed(config, images, home)
    torch.manual_seed(mixed(config["seed"]))  # of the network's first weights, the same on every rank
    model = assemble(config, home)
    say_what_is_fitted(config, config := dict(model.config))
    if config["init"]["ckpt"] and not config["resume"]:
        config["init"] = begin_from(model.denoiser, config, trust)
    serving = served(model.codec, dataset, "cuda" if settings["accelerator"] in ("cuda", "gpu") else "cpu")
    module = training_module(config, model, dataset.flip, serving)
    require_shardable(config, module)
    compiled(config, module, settings["accelerator"])
    limit, interruption = TimeLimit(config.get("minutes")), Interruption(callbacks := build_callbacks(config))
    first, then = [Record(config, sources, copies(model.codec)), Divergence(), Unscale(), limit], callbacks.values()
    trainer = build_trainer(config, settings, folder, [*first, *then, interruption])
    given = {key: config[key] for key in ("batch_size", "seed")}
    given |= {"dataset": dataset, "conditions": module.conditions, "serving": serving}
    data = construct(DataModule, config["data"], "data", given=given)
    with alone_in(folder) if trainer.is_global_zero else nullcontext():
        resume, done, left = resumable(config) if config["resume"] else (None, 0, False)
        if resume and done >= config["steps"] and not (left and done == config["steps"]):
            said = "The run %s is at step %d of %d: there is nothing left to do; say more steps to go on."
            log.warning(said, folder, done, config["steps"])
            farewell(module, folder, dataset.name)
            return {}
        if not resume and trainer.is_global_zero and begun(folder):
            raise UserError(f"The run {folder} was begun by another process meanwhile; run the command again.")
        serving.items(images)  # what is to be encoded is encoded now, and not while the other ranks wait at a barrier
        with job(config, folder, trust), run_of_its_own(), interruption.heeded(trainer, trust), kept(folder):
            if not resume:
                begin_anew(trainer, config)
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    farewell(module, folder, dataset.name)
    return module.latest


def farewell(module: TrainingModule, folder: Path, dataset: str) -> None:
    """Log at the end which numbers came out, where the run is, and the commands that it is for, with the same data."""
    for name, value in module.latest.items():
        if name in ("loss", "loss/accuracy") or "@" in name:
            log.info("%-24s %.4g", name, value)
    log.info("%-24s %s", "numbers", folder / "metrics.jsonl")
    if pictures := sorted((folder / "samples").glob("*.png")):
        log.info("%-24s %s", "samples", pictures[-1])
    for what, command in getattr(module.denoiser, "uses", {}).items():
        log.info("%-24s %s", what, command.format(folder, dataset=dataset))


def require_possible(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError or ValueError for what can be seen without data: classes that are not trusted, a folder that holds a run, values out
    of range, methods that a class lacks, and choices that do not go together."""
    if config["resume"]:
        vet(config, where=f"resume={config['resume']}")
    elif begun(folder):
        raise UserError(f"{folder} holds a run already; give another name=..., or go on with it by resume={folder}.")
    if not isinstance(config["init"], Mapping) or config["init"]["ckpt"] == "":
        raise UserError(f"init={config['init']} names no run to begin from: say init.ckpt=runs/NAME, or leave it out.")
    if config["dataset"].get("holdout") and not config["callbacks"].get("heldout"):
        raise UserError("dataset.holdout keeps items from a training that has no callbacks.heldout to measure their loss: leave it out.")
    review(config)
    require_methods(config)
    require_fit(config)


def begun(folder: Path) -> bool:
    """Whether there is a run in a folder, with a checkpoint to go on from. Another process may begin one until the folder is locked."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def build_trainer(config: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, callbacks: Sequence[Callback]) -> Trainer:
    """Lightning's trainer with these settings, without what this package does itself. Raises UserError as `require_writable_places`."""
    trainer: Trainer = build(
        settings,
        "trainer",
        callbacks=list(callbacks),
        logger=list(build_stages(config["logger"], "logger").values()),
        plugins=[SealedIO()],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    require_writable_places(trainer.loggers)
    return trainer


def build_callbacks(config: Mapping[str, Any]) -> dict[str, Callback]:
    """The callbacks by name; those that measure are given the metrics."""
    metrics = build_stages(config["metric"], "metric")
    return build_stages(config["callbacks"], "callbacks", {"metrics": partial(measured, metrics)})


def require_writable_places(loggers: Sequence[Logger]) -> None:
    """Raises UserError for a logger's folder outside of where the command may write, as a resumed run's file may name any."""
    for place in (place for logger in loggers for place in (logger.save_dir, logger.log_dir) if place):
        writable(place)


def begin_anew(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Remove what a run of this name has written that died before its first checkpoint, its pictures and its loggers' files (its numbers
    see to themselves, in `Record`); and tell the loggers the configuration, before Lightning has them write."""
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero and (folder / "config.yaml").exists():
        written = [folder / "samples", *(Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir)]
        for place in (place for place in written if folder in place.parents):
            shutil.rmtree(place, ignore_errors=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))


def resumable(config: Mapping[str, Any]) -> tuple[Path, int, bool]:
    """The checkpoint of the run that is resumed, its step, and whether an evaluation of that step was left. Raises UserError for one that
    cannot be read, and as `same_run` does."""
    folder, _ = find(config["resume"])
    same_run(config, read_config(folder), folder)
    file, checkpoint = read(config["resume"], whole=False)  # refused here with a sentence, not inside the loop
    return file, checkpoint["global_step"], owed(checkpoint)


def copies(codec: Codec) -> dict[str, Callable[[Path], Any]]:
    """What writes the folders of a run's that hold what its codec was trained to be."""
    keep = getattr(codec, "keep", None)
    return {COPY: keep} if keep else {}


def say_what_is_fitted(said: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Log the settings of the network that follow from the size of the codec's latents."""
    changed = {key: value for key, value in config["network"].items() if value != said["network"].get(key)}
    if changed:
        settings = ", ".join(f"network.{key}={value}" for key, value in changed.items())
        log.info("%s, by the size of the latents", settings.replace(" ", ""))


def same_run(config: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the data, or the autoencoder, are not those of the run in `folder`, or a step is of another number of items."""
    for group in ("codec", "conditions"):
        for key in sorted({*before[group], *config[group]} - {"ckpt"}):  # where an autoencoder was found; its weights say which it is
            if (was := before[group].get(key)) != (now := config[group].get(key)):
                what = "autoencoder is not that" if key == "weights" else "data are not those"
                raise UserError(f"The {what} of the run {folder}: {group}.{key} was {was} and would be {now}.")
    was, now = (f"batch_size={c['batch_size']} x accumulate={c['accumulate']}" for c in (before, config))
    if (items := before["batch_size"] * before["accumulate"]) != config["batch_size"] * config["accumulate"]:
        raise UserError(f"A step of the run {folder} is of {was} = {items} items, and {now} is not: say two whose product is {items}.")


def training_module(config: Mapping[str, Any], model: Model, mirror: bool, serving: Serving | None = None) -> TrainingModule:
    """The module that trains this model as the configuration says, on items served so, with its ways to sample."""
    parts = {name: build(config[name], name) for name in ("optimizer", "lr_schedule", "ema")}
    objective = build(config["objective"], "objective", {"span": model.codec.range})
    times = build(config["times"], "times", {"num_timesteps": model.denoiser.schedule.num_timesteps})
    settings = {name: config[name] for name in ("seed", "grad_clip")} | {"mirror": mirror}
    offered = {"times": times, "p_uncond": config["p_uncond"], "serving": serving}
    module = build(config["training"], "training", offered, model=model, objective=objective, **parts, **settings)
    module.recipes = {name: model.recipe(**way) for name, way in ways(config).items()}
    return module


def measured(metrics: Mapping[str, Metric], n: int | None = None) -> list[Metric]:
    """The metrics of a run; with n, only those of images, each of n images."""
    if n is None:
        return list(metrics.values())
    return [other for metric in metrics.values() if (other := metric.resized(n)) is not None]


def main(config: str, folder: str, parent: str, *trust: str) -> None:
    """The command line of a rank."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    follow(int(parent))
    with one_sentence(), parting():
        train(yaml.safe_load(Path(config).read_text()), Path(folder), trust=trust)


if __name__ == "__main__":
    main(*sys.argv[1:])
