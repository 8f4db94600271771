"""python sample.py ckpt=runs/NAME n=64 sampler=ddim grid.steps=50 seed=0 — images, grid.png and samples.npz from a run."""

import logging
from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from diffusion.config import brought, own, register, told, words
from diffusion.schemas import SampleSchema, known
from diffusion.shell import begin, shell
from diffusion.support.errors import UserError

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """One call of the command."""
    with begin(trust=cfg.trust, places=told(cfg, words())):
        known(cfg, SampleSchema)
        if OmegaConf.is_missing(cfg, "ckpt"):
            raise UserError("Say what to sample from: ckpt=runs/NAME, or a checkpoint of a run.")
        if along := brought(cfg, ("grid",)):
            log.info("brought along: %s", ", ".join(along))
        sample(cfg, words())


def sample(cfg: DictConfig, typed: Mapping[str, str]) -> None:
    """Load, generate, write. Image i has seed SEED + i, and has the condition that it has in the run's own grids unless `classes` is
    given."""
    import numpy as np  # these are slow to import, so that --help and a mistyped word have been answered by now
    import torch

    from diffusion.checkpoint import load
    from diffusion.editing import edited, interpolated
    from diffusion.generate import trajectories
    from diffusion.pictures import save_gif, save_images, show
    from diffusion.support.devices import device

    if cfg.trajectory and cfg.between:
        raise UserError("trajectory=true shows how images of seeds come out of noise, not those between two seeds; leave one of both out.")
    model = load(cfg.ckpt, cfg.averaged).to(device(cfg.device))
    recipe = model.recipe(
        **own(model.config, cfg, typed),
        batch_size=cfg.sample_batch_size,
        precision=cfg.precision,
        size=model.size(cfg.height, cfg.width),
    )
    recipe = edited(recipe, OmegaConf.to_container(cfg.edit, resolve=True))
    seeds, numbers = range(cfg.seed, cfg.seed + cfg.n), torch.arange(cfg.n)
    cond = recipe.conditions.ask(numbers)
    if cfg.classes is not None:
        classes = recipe.conditions.parse(OmegaConf.to_object(cfg.classes) if OmegaConf.is_config(cfg.classes) else cfg.classes, "classes")
        cond = classes[numbers % len(classes)]
    images = interpolated(recipe, cfg.between, cfg.n, cond) if cfg.between else recipe(seeds, cond).images
    folder = Path(cfg.out or model.path.parent.parent / "samples" / f"{model.path.stem}-seed={cfg.seed}")
    columns = cfg.columns or max(1, round(cfg.n**0.5))
    save_images(images, folder, columns, seeds=None if cfg.between else np.array(seeds), labels=None if cond is None else cond.numpy())
    if cfg.trajectory:
        with recipe.computing():
            states = trajectories(recipe.denoiser, recipe.sampler, recipe.grid, recipe.shape, seeds, cond)
            save_gif([show(recipe.codec.decode(state.x).cpu(), columns) for state in states], folder / "trajectory.gif")
    log.info("%d images, grid.png and samples.npz in %s", len(images), folder)


if __name__ == "__main__":
    shell(main)
