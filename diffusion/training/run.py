"""One training run: from a resolved configuration, plain data, to a folder with checkpoints, samples and metrics.jsonl.

`python -m diffusion.training.run CONFIG.yaml FOLDER [PACKAGE ...]` runs a rank of the run in FOLDER; Lightning starts the other ranks so.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Trainer

from diffusion.checkpoint import find, read_checkpoint
from diffusion.data.module import DataModule
from diffusion.metrics import Metric
from diffusion.model import Model, assemble, completed, ways
from diffusion.support.build import build, build_stages
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.seeds import mixed
from diffusion.support.trust import trusting, vet
from diffusion.training.callbacks.checkpoints import AtomicIO
from diffusion.training.callbacks.record import Record
from diffusion.training.launch import job
from diffusion.training.loggers import quiet, run_of_its_own
from diffusion.training.module import DiffusionModule


def train(config: Mapping[str, Any], folder: Path, source: str | None = None, trust: Sequence[str] = ()) -> dict[str, float]:
    """Run `config` in `folder`, from its start or, where `resume` is set, from its last checkpoint. Returns the last numbers.

    Nothing of the run's folder is touched before all that can refuse has been tried. Raises UserError or ValueError with one sentence for
    an error that the user can correct."""
    with trusting(trust):
        return _train(config, folder, source, trust)


def _train(config: Mapping[str, Any], folder: Path, source: str | None, trust: Sequence[str]) -> dict[str, float]:
    quiet()
    torch.set_float32_matmul_precision(config["matmul_precision"])
    if config["resume"]:
        vet(config, where=f"resume={config['resume']}")
    elif (folder / "checkpoints" / "last.ckpt").exists():
        raise UserError(f"{folder} holds a run already; give another name=..., or go on with it by resume={folder}.")
    dataset = build(config["dataset"], "dataset")
    config = completed(config, dataset.load())  # on every rank: one makes the cache, and all refuse with the same sentence
    torch.manual_seed(mixed(config["seed"]))  # of the network's first weights, the same on every rank
    model = assemble(config)
    module = training_module(config, model)
    resume = find(config["resume"])[1] if config["resume"] else None
    if resume:
        read_checkpoint(resume)  # refused here with a sentence, not inside the loop
    metrics = partial(measured, build_stages(config["metric"], "metric"))
    callbacks = build_stages(config["callbacks"], "callbacks", {"metrics": metrics})
    if config["compile"]:
        module.denoiser.network.compile()
    trainer: Trainer = build(
        config["trainer"],
        "trainer",
        callbacks=[Record(config, source), *callbacks.values()],
        logger=list(build_stages(config["logger"], "logger").values()),
        plugins=[AtomicIO()],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataModule(dataset, config["batch_size"], config["seed"], **config["data"])
    with job(config, folder, trust), run_of_its_own():
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module.latest


def training_module(config: Mapping[str, Any], model: Model) -> DiffusionModule:
    """The module that trains this model as the configuration says, with its ways to sample."""
    parts = {name: build(config[name], name, {"span": model.codec.range}) for name in ("objective", "optimizer", "lr_schedule", "ema")}
    times = build(config["times"], "times", {"num_timesteps": model.denoiser.schedule.num_timesteps})
    settings = {name: config[name] for name in ("p_uncond", "seed", "grad_clip")}
    module = DiffusionModule(model, times=times, mirror=config["dataset"].get("flip", False), **parts, **settings)
    how = {"batch_size": config["sample_batch_size"], "precision": config["precision"]}
    module.recipes = {name: model.recipe(**way, **how) for name, way in ways(config).items()}
    return module


def measured(metrics: Mapping[str, Metric], n: int | None = None) -> list[Metric]:
    """The metrics of a run; with n, only those of images, each of n images."""
    if n is None:
        return list(metrics.values())
    return [other for metric in metrics.values() if (other := metric.resized(n)) is not None]


def main(config: str, folder: str, *trust: str) -> None:
    """The command line of a rank."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with one_sentence():
        train(yaml.safe_load(Path(config).read_text()), Path(folder), trust=trust)


if __name__ == "__main__":
    main(*sys.argv[1:])
