"""python train.py [group=choice] [key=value] — compose a configuration, build the run, train it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffusion.config import brought, configuration, register, resumes, told, words
from diffusion.published import headline
from diffusion.shell import begin, shell
from diffusion.support.progress import loading
from diffusion.support.trust import packages
from diffusion.sweeps import one_job, require_one_run, swept

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; under -m, each of the sweep's, which gives the last value of its first metric."""
    if swept():
        return one_job(cfg, trained)
    folder = Path(HydraConfig.get().runtime.output_dir)
    with begin(folder, cfg.trust, [folder, *told(cfg, words())] if resumes(cfg, folder) else None):
        require_one_run(cfg)
        trained(cfg, *configuration(cfg, folder), folder)
    return None


def trained(cfg: DictConfig, config: Mapping[str, Any], sources: Mapping[str, str], folder: Path) -> None:
    """The run of this configuration, in its folder."""
    log.info("run folder %s", folder)
    if along := brought(cfg):
        log.info("brought along: %s", ", ".join(along))
    if numbers := headline(config.get("published")):
        log.info("published: %s", numbers)
    limit = "" if config.get("minutes") is None else f", or as many as minutes={config['minutes']:g} allow"
    log.info("%s steps of batch_size=%s%s", f"{config['steps']:,}", config["batch_size"], limit)

    with loading("torch and Lightning"):
        from diffusion.training.run import train  # slow to import, so that a mistyped word has been answered by now

    train(config, folder, sources, packages(cfg.trust))


if __name__ == "__main__":
    shell(main)
