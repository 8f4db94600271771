"""Checkpoints that are whole or absent, and never of a run gone wrong."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from diffusion.checkpoint import LAST, PREVIOUS, read_checkpoint, write_checkpoint
from diffusion.support.ranges import Count
from diffusion.training.callbacks.periodic import Periodic


class SealedIO(TorchCheckpointIO):
    """Checkpoints that are whole, with a hash that is compared when they are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """As `write_checkpoint`, whose `keep` are the storage options."""
        write_checkpoint(checkpoint, Path(path), keep=storage_options)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """As `read_checkpoint`, on the CPU."""
        return read_checkpoint(Path(path))


class Checkpoints(Periodic):
    """checkpoints/last.ckpt every `every` steps, at the end and on SIGTERM, and previous.ckpt, the one before it; with `keep_every`, also
    step=N.ckpt that stay.

    Raises UserError in place of saving weights or losses that are not finite, so that last.ckpt is the last good one."""

    def __init__(self, every: Count, keep_every: Count | None = None) -> None:
        super().__init__(every)
        self.keep_every = keep_every

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        module.require_finite(weights=True)
        folder, step = Path(trainer.default_root_dir) / "checkpoints", trainer.global_step
        trainer.save_checkpoint(folder / LAST, storage_options=folder / PREVIOUS)
        if self.keep_every and step % self.keep_every == 0:
            trainer.save_checkpoint(folder / f"step={step:08d}.ckpt")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """SIGTERM, as a cluster sends it before it takes the machine; Lightning raises it between two batches."""
        if isinstance(exception, SIGTERMException):
            self.act(trainer, module)
