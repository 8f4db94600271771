"""The LightningModule that trains an autoencoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion.conditions import Originals
from diffusion.data import flip
from diffusion.model import Model
from diffusion.networks.autoencoder import Autoencoded
from diffusion.reconstruction import Autoencoding
from diffusion.support.ranges import Limit, Seed
from diffusion.training.adversary import Opponent
from diffusion.training.base import TrainingModule
from diffusion.training.ema import EMA
from diffusion.training.share import Share


class AutoencoderModule(TrainingModule):
    """Trains the autoencoder of `model` by `objective`, a `Reconstruction`, on batches of pictures uint8 [b, h, w, c].

    The random numbers of a step are flips and the draw of the posterior. With an adversary in the objective a discriminator learns beside
    it; each batch has its own adaptive weight. See `TrainingModule` for the other settings.

    Raises ValueError for another model, another objective, or other conditions than the originals, UserError for what the perceptual
    distance cannot take."""

    def __init__(
        self,
        model: Model,
        objective: Any,
        optimizer: Callable,
        lr_schedule: Callable[[int], float],
        ema: EMA,
        mirror: bool = False,
        seed: Seed = 0,
        grad_clip: Limit | None = None,
    ) -> None:
        name = type(objective).__name__
        if not isinstance(model.denoiser, Autoencoding) or not getattr(objective, "reconstructs", False):
            raise ValueError(f"objective {name} trains no autoencoder: task=autoencoder goes with objective=reconstruction and its like.")
        if not isinstance(model.conditions, Originals):
            raise ValueError("task=autoencoder is told the pictures themselves: leave conditions out, or say conditions=originals.")
        super().__init__(model, objective, optimizer, lr_schedule, ema, mirror, seed, grad_clip)
        channels, *size = model.codec.shape
        blank = torch.zeros(1, *model.codec.shape)
        objective(blank, Autoencoded(blank, {}))  # a perceptual distance may refuse, which is to be now
        self.opponent = Opponent(objective.adversary, channels, size) if objective.adversary.weight else None

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """The mean over the batch of the objective of what the network makes of pictures, latents being drawn from the posterior."""
        images, step, network = batch[0], self.global_step, self.denoiser.network
        share = Share.of(len(images), self.trainer, batch_idx)
        share.begin(self.seed, step)
        x = self.codec.encode(flip(images, share.rand(images.device)) if self.mirror else images)
        height, width = (-(-side // network.factor) for side in x.shape[-2:])
        noise = share.randn_like(x.new_empty(len(x), network.latent_channels, height, width))
        share.end(self.seed, step)
        made = network(x, lambda mean: noise.to(mean))
        losses = self.objective(x, made)
        against = self.against(x, made.x, losses["reconstruction"].mean(), step)
        self.meter.update(losses | {name: value.detach().expand(len(x)) for name, value in against.items()})
        return losses["loss"].mean() + against.get("adversarial", 0.0)

    def against(self, x: Tensor, x_hat: Tensor, reconstruction: Tensor, step: int) -> dict[str, Tensor]:
        """The terms of the discriminator [], by name: that of the autoencoder's loss, its weight, and the discriminator's own; zeros until
        it begins."""
        if self.opponent is None:
            return {}
        if step < self.opponent.settings.start:
            return dict.fromkeys(("adversarial", "adversarial_weight", "discriminator"), reconstruction.new_zeros(()))
        term, weight = self.opponent.term(x_hat, reconstruction, self.denoiser.network.last.weight)
        own = self.opponent.learn(x, x_hat, self.trainer.accumulate_grad_batches)
        return {"adversarial": term, "adversarial_weight": weight, "discriminator": own}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """One step of the weights, at whose learning rate the discriminator makes its own."""
        lr = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        if self.opponent is not None:
            self.opponent.step(lr)

    def on_fit_start(self) -> None:
        """The discriminator is nobody's submodule, so it is moved by itself."""
        super().on_fit_start()
        if self.opponent is not None:
            self.opponent.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The discriminator and its optimizer travel with the weights."""
        super().on_save_checkpoint(checkpoint)
        if self.opponent is not None:
            checkpoint["adversary"] = self.opponent.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """See on_save_checkpoint."""
        super().on_load_checkpoint(checkpoint)
        if self.opponent is not None:
            self.opponent.load_state_dict(checkpoint["adversary"])
