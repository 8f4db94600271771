"""Composed configurations, as the commands would have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from diffusion.config import EvaluateSchema, SampleSchema, TrainSchema, own, plain, register, resolved

ROOT = Path(__file__).parent.parent
SCHEMAS = {"train": TrainSchema, "sample": SampleSchema, "evaluate": EvaluateSchema}
TINY = [
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.num_classes=4",
    "network.channels=8",
    "batch_size=8",
    "steps=12",
    "log_every=2",
    "eval_every=6",
    "checkpoint_every=4",
    "grid.steps=3",
    "trainer.accelerator=cpu",
    "callbacks.samples.columns=2",
]


def typed(*overrides: str) -> dict[str, str]:
    """What `diffusion.config.words` makes of these words."""
    split = (word.lstrip("+~").partition("=") for word in overrides)
    return {key: value for key, _, value in split}


def composition(*overrides: str, name: str = "train") -> DictConfig:
    """What Hydra composes of a command line, without the loggers that need a running Hydra."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, ["name=test", "logger=none", *overrides] if name == "train" else list(overrides))


def composed(*overrides: str, name: str = "train") -> dict:
    """The resolved configuration of a command line, each stage with its own settings."""
    content = plain(composition(*overrides, name=name), typed(*overrides), SCHEMAS[name])
    return resolved({key: value for key, value in content.items() if key != "trust"})


def way(run: Mapping[str, Any], *overrides: str, name: str = "sample") -> dict:
    """The sampler, grid, guidance and metrics that sample.py or evaluate would take for this run with these words."""
    return own(run, composition("ckpt=x", *overrides, name=name), typed(*overrides))
