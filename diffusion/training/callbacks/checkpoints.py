"""Checkpoints that are whole or absent, and never of a run gone wrong."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from diffusion.support.files import atomic
from diffusion.training.callbacks.periodic import Periodic


class AtomicIO(TorchCheckpointIO):
    """Writes beside the target, fsyncs, and renames."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """`path` holds the old checkpoint or the new one, never a part."""
        with atomic(path) as temporary:
            torch.save(checkpoint, temporary)


class Checkpoints(Periodic):
    """checkpoints/last.ckpt every `every` steps, at the end and on SIGTERM; with `keep_every`, also step=N.ckpt that stay.

    Raises UserError in place of saving weights or losses that are not finite, so that last.ckpt is the last good one."""

    def __init__(self, every: int, keep_every: int | None = None) -> None:
        super().__init__(every)
        self.keep_every = keep_every

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        module.require_finite(weights=True)
        folder, step = Path(trainer.default_root_dir) / "checkpoints", trainer.global_step
        trainer.save_checkpoint(folder / "last.ckpt")
        if self.keep_every and step % self.keep_every == 0:
            trainer.save_checkpoint(folder / f"step={step:08d}.ckpt")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """SIGTERM, as a cluster sends it before it takes the machine; Lightning raises it between two batches."""
        if isinstance(exception, SIGTERMException):
            self.act(trainer, module)
