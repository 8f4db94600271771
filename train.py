"""python train.py [group=choice] [key=value] — compose a configuration, build the run, train it."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from diffusion.config import quiet, register, resolved, shell
from diffusion.run import save_config, train

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """One run; under -m, each of the sweep's."""
    quiet()
    config, folder = resolved(cfg)
    save_config(config, folder)
    log.info("run folder %s", folder)
    latest = train(config, folder)
    summarise(latest, folder)


def summarise(latest: dict[str, float], folder: Path) -> None:
    """Say at the end what came out and where it is."""
    for name, value in latest.items():
        if name == "loss" or "@" in name:
            log.info("%-24s %.4g", name, value)
    pictures = sorted((folder / "samples").glob("*.png"))
    log.info("samples                  %s", pictures[-1] if pictures else "none")
    log.info("numbers                  %s", folder / "metrics.jsonl")
    log.info("sample from it           python sample.py ckpt=%s", folder)


if __name__ == "__main__":
    shell(main)
