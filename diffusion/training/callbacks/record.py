"""The record of a run's configuration, written when nothing can refuse the run any more, and where its numbers stood at a checkpoint."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.passport import code_version
from diffusion.support.environment import environment
from diffusion.support.files import atomic, cut, lines
from diffusion.training.launch import require_one_folder
from diffusion.training.loggers import purge

NUMBERS = ("metrics.jsonl", "*/metrics.csv")  # a line for each that was recorded
TEMPORARY = (".*.yaml.*.tmp", ".codec.*.tmp", ".metrics.*.tmp", "*/.metrics.*.tmp", "checkpoints/**/.*.tmp", "samples/.*.png.*.tmp")


class Record(Callback):
    """Before the first step, when data, model, metrics and, of a resumed run, its checkpoint have been loaded: the resolved configuration
    and where it came from to the run's folder, with what it runs on (environment.yaml) and the folders that the functions `beside` write,
    and the configuration to every logger. A refused command leaves the folder as it was.

    A checkpoint knows how many lines the files of numbers had. A resumed run cuts them there, and goes on as if it had never been stopped;
    what was measured afterwards stays, since it says itself of which weights it is. A new run begins them anew. What killed writers left
    behind goes too."""

    def __init__(
        self, config: Mapping[str, Any], sources: Mapping[str, str] = {}, beside: Mapping[str, Callable[[Path], Any]] = {}
    ) -> None:
        self.config, self.sources, self.beside = dict(config), sources, beside
        self.stood: dict[str, int] | None = None if config["resume"] else {}  # None: of an older version, which did not say

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """The processes' first meeting."""
        require_one_folder(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What loggers still hold goes to their files first."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            folder = Path(trainer.default_root_dir)
            checkpoint["lines"] = {str(file.relative_to(folder)): lines(file) for file in files(folder)}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See on_save_checkpoint."""
        self.stood = checkpoint.get("lines")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """See above."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        for left in [path for pattern in TEMPORARY for path in folder.glob(pattern)]:
            shutil.rmtree(left, ignore_errors=True)
        for name, write in self.beside.items():
            with atomic(folder / name) as temporary:
                write(temporary)
        around = {"code": code_version(), **environment(), "processes": trainer.world_size}
        recorded = {"config.yaml": self.config, "environment.yaml": around}
        texts = {name: yaml.safe_dump(content, sort_keys=False) for name, content in recorded.items()}
        for name, text in (texts | dict(self.sources)).items():
            with atomic(folder / name) as temporary:
                temporary.write_text(text)
        for file in files(folder) if self.stood is not None else ():
            cut(file, self.stood.get(str(file.relative_to(folder)), 0), measured_afterwards)
        for logger in trainer.loggers if self.config["resume"] else ():  # a new run's loggers were told before they wrote their files
            logger.log_hyperparams(self.config)
            purge(logger, trainer.global_step + 1)


def measured_afterwards(line: bytes) -> bool:
    """Whether a line of metrics.jsonl is one of `diffusion.evaluate`."""
    try:
        return '"cell"' in line.decode() and "cell" in json.loads(line)
    except ValueError:
        return False


def files(folder: Path) -> list[Path]:
    """A run's files of numbers."""
    return [file for pattern in NUMBERS for file in folder.glob(pattern)]
