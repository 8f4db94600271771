"""python sample.py ckpt=runs/NAME n=64 sampler=ddim grid.steps=50 seed=0 — images, grid.png and samples.npz from a run."""

import logging
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from diffusion.checkpoint import load
from diffusion.config import register
from diffusion.editing import edited, interpolate
from diffusion.generate import Recipe, trajectories
from diffusion.pictures import save_gif, save_png, tile
from diffusion.shell import begin, shell
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.training.run import guided

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """One call of the command."""
    with begin():
        sample(OmegaConf.to_container(cfg, resolve=True))


def sample(config: dict) -> None:
    """Load, generate, write. Image i has seed SEED + i and the classes in turn."""
    run = load(config["ckpt"], config["ema"])
    device = config["device"] if config["device"] != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dataset = run.config["dataset"]
    plain = Recipe(
        guided(run.denoiser.to(device), config["guidance"], dataset["num_classes"]),
        build(config["sampler"], "sampler"),
        build(config["grid"], "grid"),
        (dataset["channels"], dataset["image_size"], dataset["image_size"]),
        run.codec,
        config["batch_size"],
    )
    recipe = edited(plain, config["edit"])
    labels = conditions(config, dataset["num_classes"])
    seeds = range(config["seed"], config["seed"] + config["n"])
    folder = Path(config["out"] or run.path.parent.parent / "samples" / f"{run.path.stem}-seed={config['seed']}")
    columns = config["columns"] or max(1, round(config["n"] ** 0.5))
    images = interpolate(recipe, config["between"], len(seeds), labels) if config["between"] else recipe(seeds, labels)
    for i, image in enumerate(images):
        save_png(tile(image[None], 1, gap=0, cell=1), folder / f"{i:06d}.png")
    save_png(tile(images, columns), folder / "grid.png")
    with atomic(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, images=images.numpy(), seeds=np.array(seeds), **({} if labels is None else {"labels": labels.numpy()}))
    if config["trajectory"]:
        states = trajectories(recipe.denoiser, recipe.sampler, recipe.grid, recipe.shape, seeds, labels)
        save_gif([tile(run.codec.decode(state.x).cpu(), columns) for state in states], folder / "trajectory.gif")
    log.info("%d images, grid.png and samples.npz in %s", len(images), folder)


def conditions(config: dict, num_classes: int) -> torch.Tensor | None:
    """The class of each image, [n]; None for a model without classes. Raises UserError for classes the model does not have."""
    if config["n"] < 1:
        raise UserError(f"n={config['n']} images cannot be made; say at least 1.")
    classes = config["classes"] if config["classes"] is not None else list(range(num_classes))
    if any(not 0 <= c < num_classes for c in classes):
        raise UserError(f"classes={classes} is not among the model's {num_classes} classes, 0 to {num_classes - 1}.")
    return torch.tensor([classes[i % len(classes)] for i in range(config["n"])]) if classes else None


if __name__ == "__main__":
    shell(main)
