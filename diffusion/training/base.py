"""What every training has: the optimizer and its learning rate, an average of the weights, meters, ways to sample, checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.distributed.tensor import DTensor

from diffusion.generate import Recipe
from diffusion.model import Model
from diffusion.support.devices import laid_out, laid_out_as
from diffusion.support.ranges import Limit, Seed
from diffusion.training.ema import EMA
from diffusion.training.loss_meter import Meter
from diffusion.training.sharding import divided, gathered


class TrainingModule(LightningModule):
    """Trains the denoiser of `model`, or what stands in its place, by `objective`. A subclass says a batch's loss, in `training_step`.

    All randomness of a step follows from (seed, step) and a sample's place in it, see `Share`, so that a resumed run continues bit for bit,
    on another number of devices too but for the rounding of sums, and nothing that happens between steps can change it. No step waits for
    the device: losses accumulate in `meter` until a callback reads them."""

    computed: Any = None  # what compile=step compiles: a batch's losses, of a subclass that has them apart

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
        super().__init__()
        self.model, self.denoiser, self.codec, self.conditions = model, model.denoiser, model.codec, model.conditions
        self.objective, self.make_optimizer, self.lr_schedule, self.ema = objective, optimizer, lr_schedule, ema.start(model.denoiser)
        self.mirror, self.seed, self.grad_clip = mirror, seed, float("inf") if grad_clip is None else grad_clip
        self.meter = Meter()
        self.recipes: dict[str, Recipe] = {}  # what callbacks sample with, by name
        self.latest: dict[str, float] = {}  # the last value of each recorded number
        self.latest_step: dict[str, int] = {}  # and of which step it is
        self.evaluation_seconds = 0.0
        self.since = time.time()  # when this process began to train, in seconds since 1970

    def on_fit_start(self) -> None:
        """See since."""
        self.since = time.time()

    def configure_model(self) -> None:
        """The weights as the device has them, and their average: its part of them under a strategy that shards, else `laid_out` for it."""
        if not divided(self):
            laid_out(self.denoiser, self.trainer.strategy.root_device)
        self.ema.start(self.denoiser)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient's norm, and clipping to it."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip)
        self.meter.end_step(self.global_step, norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the weights, then what follows it. The gradients go now: Lightning would keep them beside the next activations."""
        super().optimizer_step(*args, **kwargs)
        self.trainer.optimizers[0].zero_grad()
        self.follow()

    def follow(self) -> None:
        """After a step of the weights: one of their average."""
        self.ema.update(self.denoiser)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over what is trained and what the objective learns itself, its learning rate multiplied by lr_schedule(step)."""
        optimizer = self.make_optimizer(self.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Averaged weights and evaluation mode; afterwards everything as it was."""
        training = self.denoiser.training
        with self.ema.applied(self.denoiser), gathered(self.denoiser), torch.no_grad():
            self.denoiser.eval()
            try:
                yield
            finally:
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
        follow_layout(optimizer)
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


def follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state its weights' layout in memory. A checkpoint's is that of the device it was trained on, and a fused step
    reads both as if they were alike."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                state[name] = laid_out_as(weight, value)
