"""The mean and the deviation of an autoencoder's latents, kept in each checkpoint."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Images
from diffusion.support.ranks import rank_and_world, sum_over_ranks


class Latents(Callback):
    """`latents` in each checkpoint: {mean, std, n}, a number for each channel, of n evenly spaced pictures of the training set (None: all),
    encoded with the averaged weights. std^2 = Var(posterior's mean) + E[posterior's variance] is that of latents as they are drawn.

    They say how `diffusion.codecs.Autoencoder` makes latents of unit variance. All ranks measure together. Raises UserError, before it is
    trained, for another model."""

    def __init__(self, n: Images | None = 4096, batch_size: Few = 256) -> None:
        self.n, self.batch_size = n, batch_size

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not hasattr(module.denoiser.network, "moments"):
            raise UserError("callbacks=autoencoder keeps an autoencoder's latents: leave it out, or say task=autoencoder, which brings it.")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        images = trainer.datamodule.images.images
        n, (rank, world) = min(self.n or len(images), len(images)), rank_and_world()
        chosen = (torch.arange(n) * len(images) // n)[rank::world].split(self.batch_size)
        with module.sampling():
            parts = [moments(module, torch.from_numpy(np.array(images[rows.numpy()]))) for rows in chosen if len(rows)]
        if not parts:  # a rank without a picture
            parts = [torch.zeros(4, module.denoiser.network.latent_channels, dtype=torch.float64, device=module.device)]
        mean, square, variance, count = sum_over_ranks(torch.stack(parts).sum(0)).cpu()
        mean, variance = mean / count, square / count - (mean / count) ** 2 + variance / count
        checkpoint["latents"] = {"mean": mean.tolist(), "std": variance.sqrt().tolist(), "n": n}


def moments(module: LightningModule, pictures: Tensor) -> Tensor:
    """Sums over pictures uint8 [b, h, w, c] and places: of the posterior's mean, its square, its variance, and 1, [4, z] in float64."""
    mean, logvar = module.denoiser.network.moments(module.codec.encode(pictures.to(module.device)))
    mean, variance = mean.double(), logvar.double().exp()
    return torch.stack([term.sum((0, 2, 3)) for term in (mean, mean**2, variance, torch.ones_like(mean))])
