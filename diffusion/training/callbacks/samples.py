"""A picture of samples, every so many steps."""

from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer

from diffusion.pictures import save_png, tile
from diffusion.support.ranks import rank_and_world
from diffusion.training.callbacks.periodic import Evaluation


class Samples(Evaluation):
    """Every `every` steps, for each of the module's recipes: a grid of samples, as PNG under samples/ and to the loggers.

    A class-conditional model's grid has a row for each class (the first `rows` of them), the same seeds every time."""

    def __init__(self, every: int, rows: int = 10, columns: int = 10, seed: int = 0, at_start: bool = False) -> None:
        super().__init__(every, at_start)
        self.rows, self.columns, self.seed = rows, columns, seed

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        classes = trainer.datamodule.dataset.num_classes
        rows = min(self.rows, classes) if classes else self.rows
        labels = torch.arange(rows).repeat_interleave(self.columns) if classes else None
        for name, recipe in module.recipes.items():
            seeds = range(self.seed, self.seed + rows * self.columns)
            images = shared(
                lambda share, r=recipe, s=seeds: r([s[i] for i in share], None if labels is None else labels[share]), len(seeds)
            )
            if trainer.is_global_zero:
                picture = tile(images, self.columns)
                save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-step={trainer.global_step:08d}.png")
                for logger in trainer.loggers:
                    log_image(logger, f"samples/{name}", picture, trainer.global_step)


def shared(make, n: int) -> torch.Tensor | None:  # noqa: ANN001
    """`make(indices) -> images` for 0..n-1 in shares, one for each rank; all of them in order on the first rank, None on others."""
    rank, world = rank_and_world()
    share = list(range(n))[rank::world]
    images = make(share)
    if world == 1:
        return images
    gathered = [None] * world if rank == 0 else None
    dist.gather_object(images.numpy(), gathered)
    if rank != 0:
        return None
    result = torch.empty(n, *images.shape[1:], dtype=images.dtype)
    for other, part in enumerate(gathered):
        result[other::world] = torch.from_numpy(part)
    return result


def log_image(logger, key: str, picture: torch.Tensor, step: int) -> None:  # noqa: ANN001
    """A picture uint8 [h, w, c] to a logger that takes pictures: wandb's `log_image`, or TensorBoard's writer."""
    if hasattr(logger, "log_image"):
        logger.log_image(key, [picture.numpy()], step=step)
    elif hasattr(logger.experiment, "add_image"):
        logger.experiment.add_image(key, picture.numpy(), step, dataformats="HWC")
