"""A training whose losses are no longer finite: noticed within five steps, with the numbers up to there kept, and said in one sentence."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.checkpoint import LAST
from diffusion.shards import local
from diffusion.support.errors import UserError
from diffusion.training.callbacks.periodic import record


class Divergence(Callback):
    """Looks after each step at what has arrived of the losses, so that no step waits for the device. Raises UserError."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """See above."""
        if module.meter.bad_step() is not None:
            gone_wrong(trainer, module)


def require_finite(trainer: Trainer, module: LightningModule) -> None:
    """Raises UserError, on every rank, if a loss of any rank so far or a weight is not finite; waits for the device. All ranks must call
    it."""
    bad = module.meter.bad_step(wait=True) is not None or not all(local(p).isfinite().all() for p in module.denoiser.parameters())
    if trainer.strategy.reduce_boolean_decision(bad, all=False):
        gone_wrong(trainer, module)


def gone_wrong(trainer: Trainer, module: LightningModule) -> None:
    """Raises UserError, once the means of the good steps since the last log are recorded."""
    bad = module.meter.bad_step(wait=True)
    if means := module.meter.read():
        record(trainer, means, step=trainer.global_step if bad is None else bad)
    what = "a weight" if bad is None else f"the loss at step {bad + 1}"
    last = Path(trainer.default_root_dir) / "checkpoints" / LAST
    kept = f"{last} is from before that" if last.exists() else "nothing had been saved before that"
    remedies = [*(["a smaller optimizer.lr", "a longer warmup"] if bad != 0 else []), "precision=32-true"]
    if trainer.precision == "32-true":
        remedies.pop()
    advice = f"try {' or '.join(remedies)}" if remedies else "no step had been made by then, so look at what the network is and is given"
    raise UserError(f"Training stopped after step {trainer.global_step}: {what} is not finite; {kept}; {advice}.")
