"""python train.py [group=choice] [key=value] — compose a configuration, build the run, train it."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffusion.config import brought, configuration, register, resumes, told, words
from diffusion.shell import begin, shell
from diffusion.support.progress import doing
from diffusion.support.trust import packages

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """One run; under -m, each of the sweep's."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with begin(folder, cfg.trust, [folder, *told(cfg, words())] if resumes(cfg, folder) else None):
        config, sources = configuration(cfg, folder)
        log.info("run folder %s", folder)
        if along := brought(cfg):
            log.info("brought along: %s", ", ".join(along))
        log.info("%s steps of batch_size=%s", f"{config['steps']:,}", config["batch_size"])

        with doing("loading torch and Lightning"):
            from diffusion.training.run import train  # slow to import, so that a mistyped word has been answered by now

        summarise(train(config, folder, sources, packages(cfg.trust)), folder)


def summarise(latest: dict[str, float], folder: Path) -> None:
    """Say at the end which numbers came out and where the run is."""
    for name, value in latest.items():
        if name in ("loss", "loss/accuracy") or "@" in name:
            log.info("%-24s %.4g", name, value)
    pictures = sorted((folder / "samples").glob("*.png"))
    log.info("numbers                  %s", folder / "metrics.jsonl")
    if "loss/accuracy" in latest:  # a classifier, which makes no images
        log.info("guide a run by it        python sample.py ckpt=runs/NAME guidance=[classifier,clip] guidance.ckpt=%s", folder)
        return
    if "loss/reconstruction" in latest:  # an autoencoder, which makes none out of noise
        log.info("its reconstructions      python sample.py ckpt=%s edit=autoencode", folder)
        log.info("diffusion in its latents python train.py codec=autoencoder codec.ckpt=%s", folder)
        return
    log.info("samples                  %s", pictures[-1] if pictures else "none")
    log.info("sample from it           python sample.py ckpt=%s", folder)


if __name__ == "__main__":
    shell(main)
