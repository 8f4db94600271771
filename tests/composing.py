"""Composed configurations, as the commands would have them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffusion.config import plain, register, resolved

ROOT = Path(__file__).parent.parent
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


def composed(*overrides: str, name: str = "train") -> dict:
    """The resolved configuration of a command line, without the loggers that need a running Hydra."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(name, ["name=test", "logger=none", *overrides] if name == "train" else list(overrides))
        return resolved(plain(cfg)) if name == "train" else OmegaConf.to_container(cfg, resolve=True)
