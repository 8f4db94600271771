"""Checkpoints that are whole or absent, and never of a run gone wrong."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from diffusion.checkpoint import BEST, LAST, PREVIOUS, read_checkpoint, write_checkpoint
from diffusion.support.errors import UserError
from diffusion.support.ranges import Count
from diffusion.training.callbacks.divergence import require_finite
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
    """checkpoints/last.ckpt every `every` steps, before and after each evaluation, when the run is stopped and at the end, and
    previous.ckpt, that of an earlier step, which this training has saved or read; with `keep_every`, also step=N.ckpt that stay; with
    `keep_best`, also best.ckpt, of the step at which that number was best.

    Raises UserError in place of saving weights or losses that are not finite, so that last.ckpt is the last good one."""

    def __init__(self, every: Count, keep_every: Count | None = None, keep_best: str | None = None) -> None:
        super().__init__(every)
        self.keep_every, self.keep_best, self.saved = keep_every, keep_best, (-1, 0.0)
        self.best, self.higher = math.nan, False

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Raises UserError for a number that the run does not measure."""
        if self.keep_best is None:
            return
        metrics = [metric for callback in trainer.callbacks for metric in getattr(callback, "metrics", ())]  # type: ignore[attr-defined]
        known = {key: metric.higher_is_better for metric in metrics for key in getattr(metric, "keys", [metric.name])}
        if self.keep_best not in known:
            measured = f"it measures {', '.join(known)}" if known else "it measures none: say metric=..."
            raise UserError(f"keep_best={self.keep_best} is no number that this run measures; {measured}.")
        self.higher = known[self.keep_best]

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and of what."""
        return {"keep_best": self.keep_best, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See state_dict; another number begins anew."""
        if state_dict["keep_best"] == self.keep_best:
            self.best = state_dict["best"]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The step of last.ckpt, if it is what was loaded; a damaged one, in whose place another was, is not to become previous.ckpt."""
        if Path(str(trainer.ckpt_path)).name == LAST:
            self.saved = checkpoint["global_step"], math.nan

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer, module)
        step = trainer.global_step
        if self.keep_every and step % self.keep_every == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / f"step={step:08d}.ckpt")

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """last.ckpt as things are now, unless it is."""
        state = trainer.global_step, module.evaluation_seconds
        if state != self.saved:
            require_finite(trainer, module)
            folder = Path(trainer.default_root_dir) / "checkpoints"
            if self.improved(trainer, module):
                trainer.save_checkpoint(folder / BEST)
            trainer.save_checkpoint(folder / LAST, storage_options=folder / PREVIOUS if -1 < self.saved[0] < state[0] else None)
            self.saved = state

    def improved(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether this step's value of `keep_best` is the best so far, which it then is."""
        if self.keep_best is None or module.latest_step.get(self.keep_best) != trainer.global_step:
            return False
        value = module.latest[self.keep_best]
        if not math.isfinite(value) or (value <= self.best if self.higher else value >= self.best):
            return False
        self.best = value
        return True


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """A disk that is full, or a folder that cannot be written, as a sentence that says with what the training goes on. Raises UserError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # torch and loggers put it in other words
        found = [e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)]
        if not found:
            raise
        saved = (folder / "checkpoints" / LAST).exists()
        on = f"what was saved is whole, and resume={folder} goes on with it" if saved else "nothing had been saved yet"
        what = f"{found[0].strerror or found[0]}{f': {found[0].filename}' if found[0].filename else ''}"
        raise UserError(f"The training in {folder} stopped, since the disk did not take what it wrote ({what}); {on}.") from error


def nothing_lost(trainer: Trainer) -> bool:
    """Whether a checkpoint has the step that the training is at, or there was none yet."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    return trainer.global_step in (0, *(callback.saved[0] for callback in callbacks if isinstance(callback, Checkpoints)))


def save_last(trainer: Trainer, module: LightningModule) -> None:
    """last.ckpt as things are now, if the run has `Checkpoints`; on all ranks at once."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if isinstance(callback, Checkpoints):
            callback.save(trainer, module)
