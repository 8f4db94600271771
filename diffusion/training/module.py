"""The LightningModule that trains a denoiser: forward-kernel noising, condition dropout, and the objective."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.data import Plain, Serving
from diffusion.denoiser import Denoiser
from diffusion.model import Model
from diffusion.objectives import Objective, check
from diffusion.support import ranges
from diffusion.support.ranges import Limit, Seed
from diffusion.times import Times
from diffusion.training.base import TrainingModule
from diffusion.training.ema import EMA
from diffusion.training.share import Share
from diffusion.typing import Noise


class DiffusionModule(TrainingModule):
    """Trains the denoiser of `model` by `objective` on batches (images uint8 [b, h, w, c] or whatever its codec takes, labels [b] or None),
    or with images as `serving` serves them, which makes x_0 of them.

    The random numbers of a step are flips, condition dropout, t, eps, and an objective's own; dropout inside the network follows from the
    seed, the step and the share. See `TrainingModule` for the other settings.

    Raises ValueError if objective and denoiser disagree on the learned variance, or the objective needs a discrete schedule."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        times: Times,
        optimizer: Callable,
        lr_schedule: Callable[[int], float],
        ema: EMA,
        p_uncond: ranges.Share = 0.1,
        serving: Serving | None = None,
        mirror: bool = False,
        seed: Seed = 0,
        grad_clip: Limit | None = None,
    ) -> None:
        check(model.denoiser, objective)
        super().__init__(model, objective, optimizer, lr_schedule, ema, mirror, seed, grad_clip)
        if not 0 <= p_uncond <= 1:
            raise ValueError(f"p_uncond={p_uncond} is a share of the conditions, between 0 and 1.")
        self.times, self.p_uncond, self.serving = times, p_uncond, serving or Plain(model.codec)
        self.seen: list[tuple[Tensor, Tensor]] = []  # t and loss of the step's batches so far

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """The mean over the batch of the objective at x_t = alpha_t x_0 + sigma_t eps."""
        (images, labels), step = batch, self.global_step
        share = Share.of(len(images), self.trainer, batch_idx)
        share.begin(self.seed, step)
        x0 = self.serving.x0(images, share.rand(images.device) if self.mirror else None, share.randn_like)
        cond = self.drop(self.conditions.of(labels), share)
        t, weight = map(share.own, self.times(share.total, self.denoiser.schedule, x0.device))
        noises = self.noises(x0, share.randn_like)
        share.end(self.seed, step)
        losses = self.computed(self.denoiser, x0, t, noises[0], cond, *noises[1:])
        self.seen.append((t, losses["loss"].detach()))
        self.meter.update(losses, t, weight)
        return (weight * losses["loss"]).mean()

    def computed(self, *args: Tensor | Denoiser | None) -> dict[str, Tensor]:
        """The objective, or what `compile=step` has made of it."""
        return self.objective(*args)

    def noises(self, x0: Tensor, noise: Noise) -> list[Tensor]:
        """eps and the further noises that the objective takes, each of x0's shape."""
        return [noise(x0) for _ in range(1 + getattr(self.objective, "noises", 0))]

    def losses(self, batch: tuple[Tensor, Tensor | None], t: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The objective's losses [b] by name of a batch at these times [b], with all conditions and nothing mirrored."""
        x0 = self.serving.x0(batch[0], None, noise)
        first, *others = self.noises(x0, noise)
        return self.objective(self.denoiser, x0, t, first, self.conditions.of(batch[1]), *others)

    def drop(self, cond: Tensor | None, share: Share) -> Tensor | None:
        """Each sample's condition becomes the null condition with probability p_uncond (CFG alg. 1)."""
        if cond is None:
            return None
        keep = share.rand(cond.device) >= self.p_uncond
        return torch.where(keep.reshape(-1, *[1] * (cond.ndim - 1)), cond, self.conditions.null(cond))

    def follow(self) -> None:
        """After a step of the weights: one of their average, and what `times` learns of the losses of all the step's batches."""
        super().follow()
        t, losses = map(torch.stack, zip(*self.seen, strict=True))
        self.times.observe(t, losses)
        self.seen.clear()
