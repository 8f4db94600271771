"""The LightningModule that trains a denoiser: forward-kernel noising, condition dropout, the objective, and an average of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffusion.data import flip
from diffusion.denoiser import Denoiser, null
from diffusion.generate import Recipe
from diffusion.model import Model
from diffusion.objectives import Objective
from diffusion.support.errors import UserError
from diffusion.support.seeds import mixed
from diffusion.times import Times
from diffusion.training.ema import EMA
from diffusion.training.loss_meter import Meter


class DiffusionModule(LightningModule):
    """Trains the denoiser of `model` by `objective` on batches (images uint8 [b, h, w, c] or whatever its codec takes, labels [b] or None).

    All randomness of a step (flips, condition dropout, t, eps, dropout inside the network) follows from (seed, rank, batches so far),
    so that a resumed run continues bit for bit and nothing that happens between steps can change it. No step waits for the device:
    losses accumulate in `meter` until a callback reads them.

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
        self.recipes: dict[str, Recipe] = {}  # what callbacks sample with, by name
        self.latest: dict[str, float] = {}  # the last value of each recorded number
        self.evaluation_seconds = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """The mean over the batch of the objective at x_t = alpha_t x_0 + sigma_t eps."""
        number = self.trainer.datamodule.consumed  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        torch.manual_seed(mixed(self.seed, self.global_rank, number))
        images, labels = batch
        x0 = self.codec.encode(flip(images) if self.mirror else images)
        cond = self.drop(self.conditions.of(labels))
        t, weight = self.times(len(x0), self.denoiser.schedule, x0.device)
        losses = self.objective(self.denoiser, x0, t, torch.randn_like(x0), cond)
        loss = (weight * losses["loss"]).mean()
        self.times.observe(t, losses["loss"].detach())
        self.meter.update(losses, t, number, weight)
        return loss

    def drop(self, cond: Tensor | None) -> Tensor | None:
        """Each sample's condition becomes the null condition with probability p_uncond (CFG alg. 1)."""
        if cond is None:
            return None
        keep = torch.rand(len(cond), device=cond.device) >= self.p_uncond
        return torch.where(keep.reshape(-1, *[1] * (cond.ndim - 1)), cond, null(cond))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient's norm, and clipping to it."""
        self.meter.gradient_norm(torch.nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the weights, then one of their average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser)

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

    def require_finite(self, weights: bool = False) -> None:
        """Raises UserError, on every rank, if a loss of any rank (with `weights`, or a weight) is not finite. All ranks must call it."""
        batch = self.meter.bad_batch()
        bad = batch is not None or (weights and not all(p.isfinite().all() for p in self.denoiser.parameters()))
        if self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            at = f"the loss at step {batch // self.trainer.accumulate_grad_batches + 1}" if batch is not None else "a loss or a weight"
            raise UserError(
                f"Training stopped before step {self.trainer.global_step + 1}: {at} is not finite; checkpoints/last.ckpt is the last good "
                "one. Try a smaller optimizer.lr, a longer warmup, or precision=32-true."
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The average travels with the weights, and the time spent on evaluation with both."""
        checkpoint["ema"] = self.ema.state_dict()
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
        self.evaluation_seconds = checkpoint.get("evaluation_seconds", 0.0)


def check(denoiser: Denoiser, objective: Objective) -> None:
    """Raises ValueError with one sentence if this objective cannot train this denoiser."""
    name = type(objective).__name__
    if objective.learned_variance != denoiser.learned_variance:
        has, wants = ("no", "trains") if objective.learned_variance else ("a", "does not train")
        raise ValueError(f"objective {name} {wants} a learned variance, and the denoiser has {has} learned variance.")
    if objective.learned_variance and denoiser.schedule.num_timesteps is None:
        raise ValueError(
            f"objective {name} is a bound over discrete time steps, and {type(denoiser.schedule).__name__} has none; "
            "use objective=simple or a schedule such as cosine."
        )
