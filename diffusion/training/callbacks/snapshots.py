"""Snapshots for post-hoc EMA: a run's averages at several steps, in half precision."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from diffusion.checkpoint import write_together
from diffusion.shards import shard_of
from diffusion.training.callbacks.divergence import require_finite
from diffusion.training.callbacks.periodic import Periodic


class Snapshots(Periodic):
    """checkpoints/ema/step=N.pt every `every` steps and at the end: a post-hoc EMA's averages in float16 (2312.02696, sec. 3.2), from
    which `diffusion.average` makes an average of any length. Raises UserError in place of keeping what is not finite."""

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        require_finite(trainer, module)
        averages = [{name: shard_of(w.half().cpu()) for name, w in average.shadow.items()} for average in module.ema.averages]
        step = trainer.global_step
        file = Path(trainer.default_root_dir) / "checkpoints" / "ema" / f"step={step:08d}.pt"
        write_together({"step": step, "stds": list(module.ema.stds), "averages": averages}, file)
