"""The LightningModule that trains a denoiser: forward-kernel noising, condition dropout, the objective, and an average of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffusion.data import flip
from diffusion.generate import Recipe
from diffusion.model import Model
from diffusion.objectives import Objective, check
from diffusion.times import Times
from diffusion.training.ema import EMA
from diffusion.training.loss_meter import Meter
from diffusion.training.share import Share


class DiffusionModule(LightningModule):
    """Trains the denoiser of `model` by `objective` on batches (images uint8 [b, h, w, c] or whatever its codec takes, labels [b] or None).

    All randomness of a step (flips, condition dropout, t, eps, an objective's own) follows from (seed, step) and a sample's place in it,
    see `Share`, so that a resumed run continues bit for bit, on another number of devices too but for the rounding of sums, and nothing
    that happens between steps can change it. Dropout inside the network follows from the seed, the step and the share. No step waits for
    the device: losses accumulate in `meter` until a callback reads them.

    Raises ValueError if objective and denoiser disagree on the learned variance, or the objective needs a discrete schedule."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        times: Times,
        optimizer: Callable,
        lr_schedule: Callable[[int], float],
        ema: EMA,
        p_uncond: float = 0.1,
        mirror: bool = False,
        seed: int = 0,
        grad_clip: float | None = None,
    ) -> None:
        super().__init__()
        denoiser = model.denoiser
        check(denoiser, objective)
        if not 0 <= p_uncond <= 1:
            raise ValueError(f"p_uncond={p_uncond} is a share of the conditions, between 0 and 1.")
        self.denoiser, self.objective, self.times = denoiser, objective, times
        self.model, self.codec, self.conditions = model, model.codec, model.conditions
        self.make_optimizer, self.lr_schedule, self.ema = optimizer, lr_schedule, ema.start(denoiser)
        self.p_uncond, self.seed, self.grad_clip = p_uncond, seed, float("inf") if grad_clip is None else grad_clip
        self.mirror, self.meter = mirror, Meter()
        self.seen: list[tuple[Tensor, Tensor]] = []  # t and loss of the step's batches so far
        self.recipes: dict[str, Recipe] = {}  # what callbacks sample with, by name
        self.latest: dict[str, float] = {}  # the last value of each recorded number
        self.latest_step: dict[str, int] = {}  # and of which step it is
        self.evaluation_seconds = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """The mean over the batch of the objective at x_t = alpha_t x_0 + sigma_t eps."""
        (images, labels), step = batch, self.global_step
        share = Share.of(len(images), self.trainer, batch_idx)
        share.begin(self.seed, step)
        x0 = self.codec.encode(flip(images, share.rand(images.device)) if self.mirror else images, share.randn_like)
        cond = self.drop(self.conditions.of(labels), share)
        t, weight = map(share.own, self.times(share.total, self.denoiser.schedule, x0.device))
        noises = [share.randn_like(x0) for _ in range(1 + getattr(self.objective, "noises", 0))]
        share.end(self.seed, step)
        losses = self.objective(self.denoiser, x0, t, noises[0], cond, *noises[1:])
        self.seen.append((t, losses["loss"].detach()))
        self.meter.update(losses, t, weight)
        return (weight * losses["loss"]).mean()

    def drop(self, cond: Tensor | None, share: Share) -> Tensor | None:
        """Each sample's condition becomes the null condition with probability p_uncond (CFG alg. 1)."""
        if cond is None:
            return None
        keep = share.rand(cond.device) >= self.p_uncond
        return torch.where(keep.reshape(-1, *[1] * (cond.ndim - 1)), cond, self.conditions.null(cond))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient's norm, and clipping to it."""
        self.meter.end_step(self.global_step, torch.nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the weights, then what follows it."""
        super().optimizer_step(*args, **kwargs)
        self.follow()

    def follow(self) -> None:
        """After a step of the weights: one of their average, and what `times` learns of the losses of all the step's batches."""
        self.ema.update(self.denoiser)
        t, losses = map(torch.stack, zip(*self.seen, strict=True))
        self.times.observe(t, losses)
        self.seen.clear()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over the denoiser and what the objective learns itself, its learning rate multiplied by lr_schedule(step)."""
        optimizer = self.make_optimizer(self.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Averaged weights and evaluation mode; afterwards everything as it was."""
        training = self.denoiser.training
        with self.ema.applied(self.denoiser), torch.no_grad():
            self.denoiser.eval()
            yield
        self.denoiser.train(training)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The average travels with the weights, the losses that are not logged yet, and the time spent on evaluation."""
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["meter"] = self.meter.state_dict()
        checkpoint["evaluation_seconds"] = self.evaluation_seconds

    def on_train_start(self) -> None:
        """A resumed run goes on with the learning rate, its schedule and the optimizer's settings of its configuration, which may have
        been changed; torch would go on with the saved ones."""
        optimizer, (config,) = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs
        scheduler = config.scheduler
        for group in optimizer.param_groups:
            group.update(optimizer.defaults, initial_lr=optimizer.defaults["lr"])
            group["lr"] = optimizer.defaults["lr"] * self.lr_schedule(scheduler.last_epoch)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """See on_save_checkpoint. The saved settings of the learning rate's schedule are left: `on_train_start` says why."""
        for scheduler in checkpoint["lr_schedulers"]:
            scheduler["lr_lambdas"] = [None] * len(scheduler["lr_lambdas"])
        self.ema.load_state_dict(checkpoint["ema"])
        self.meter.load_state_dict(checkpoint.get("meter", self.meter.state_dict()), self.device)
        self.evaluation_seconds = checkpoint.get("evaluation_seconds", 0.0)
