"""One training run: from a resolved configuration, plain data, to a folder with checkpoints, samples and metrics.jsonl.

`python -m diffusion.training.run FOLDER` runs a rank of the run whose config.yaml is in FOLDER; Lightning starts the other ranks so.
"""

import logging
import sys
from pathlib import Path

import torch
import yaml

from diffusion.checkpoint import find, read
from diffusion.data import DataModule
from diffusion.denoiser import Denoiser
from diffusion.generate import Recipe
from diffusion.support.build import build, build_stages
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import atomic
from diffusion.support.seeds import mixed
from diffusion.training.callbacks.checkpoints import AtomicIO
from diffusion.training.launch import job
from diffusion.training.loggers import run_of_its_own

log = logging.getLogger(__name__)


def train(config: dict, folder: Path, source: str | None = None) -> dict[str, float]:
    """Run `config` in `folder`, from its start or, where `resume` is set, from its last checkpoint. Returns the last numbers.

    Raises UserError or ValueError with one sentence for what the user can mend."""
    torch.set_float32_matmul_precision(config["matmul_precision"])
    dataset = build(config["dataset"], "dataset")
    dataset.load()  # on every rank: one makes the cache, and all refuse with the same sentence
    torch.manual_seed(mixed(config["seed"]))  # of the network's first weights, the same on every rank
    module = build(config["task"], "task")
    data = DataModule(dataset, config["batch_size"], config["seed"], **config["data"])
    module.recipes = recipes(config, module.denoiser, module.codec)
    callbacks = build_stages(without(config["callbacks"], "distance", "milestones"), "callbacks")
    for name, metric in measured(config).items():
        if name in config["callbacks"] and (metrics := usable(metric)):
            callbacks[name] = build(config["callbacks"][name], f"callbacks.{name}", metrics=metrics)
    if config["compile"]:
        module.denoiser.network.compile()
    trainer = build(
        config["trainer"],
        "trainer",
        callbacks=list(callbacks.values()),
        logger=list(build_stages(config["logger"], "logger").values()),
        plugins=[AtomicIO()],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    resume = find(config["resume"])[1] if config["resume"] else None
    if resume:
        read(resume)  # refused here with a sentence, not inside the loop
    save_config(config, folder, source)  # all that could be refused has been built
    with job(folder), run_of_its_own():
        for logger in trainer.loggers:  # what runs are compared by
            logger.log_hyperparams(config)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module.latest


def recipes(config: dict, denoiser: Denoiser, codec: object) -> dict[str, Recipe]:
    """The ways to sample that the configuration names, each with the guidance stages wrapped around the denoiser in order."""
    size, channels = config["dataset"]["image_size"], config["dataset"]["channels"]
    return {
        name: Recipe(
            guided(denoiser, way.get("guidance", config["guidance"]), config["dataset"]["num_classes"]),
            build(way["sampler"], "sampler"),
            build(way["grid"], "grid"),
            (channels, size, size),
            codec,
            config["sample_batch_size"],
        )
        for name, way in config["samplers"].items()
    }


def guided(denoiser: Denoiser, stages: dict, num_classes: int) -> object:
    """The denoiser inside the guidance stages, the last one outermost.

    Raises UserError if they guide towards a condition and the model has none."""
    scale = stages.get("scale", 1.0)
    if scale != 1 and not num_classes:
        raise UserError(f"guidance.scale={scale} needs a class-conditional model, and this one has no classes; set guidance.scale=1.")
    for name, stage in stages.items():
        if isinstance(stage, dict):
            denoiser = build(stage, f"guidance.{name}", denoiser=denoiser)
    return denoiser


def measured(config: dict) -> dict[str, dict]:
    """What each measuring callback measures: the metrics, and at milestones, if there are any, those of images again, of more images."""
    found = {"distance": config["metric"]}
    if config.get("milestone_every"):
        of_images = {k: v for k, v in config["metric"].items() if not isinstance(v, dict) or "n" in v}
        found["milestones"] = {k: v | {"n": config["milestone_n"]} if isinstance(v, dict) else v for k, v in of_images.items()}
    return found


def usable(metric: dict) -> dict:
    """The metrics of the configuration; none, and a line in the log, if they cannot be had and `required` is false."""
    try:
        return build_stages(metric, "metric")
    except UserError as error:
        if metric.get("required", True):
            raise
        log.warning("No distance in this run: %s", error)
        return {}


def without(node: dict, *names: str) -> dict:
    """A mapping less some keys."""
    return {k: v for k, v in node.items() if k not in names}


def save_config(config: dict, folder: Path, source: str | None) -> None:
    """Write the resolved configuration, and its source, to the run's folder. Raises UserError if another run is there already."""
    if (folder / "checkpoints" / "last.ckpt").exists() and not config["resume"]:
        raise UserError(f"{folder} holds a run already; give another name=..., or go on with it by resume={folder}.")
    with atomic(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))
    if source is not None:
        with atomic(folder / "source.yaml") as temporary:
            temporary.write_text(source)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    where = Path(sys.argv[1])
    with one_sentence():
        train(yaml.safe_load((where / "config.yaml").read_text()), where)
