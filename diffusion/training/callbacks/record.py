"""The record of a run's configuration, written when nothing can refuse the run any more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.support.files import atomic


class Record(Callback):
    """Before the first step, when data, model, metrics and, of a resumed run, its checkpoint have been loaded: the resolved configuration
    and where it came from to the run's folder, and the configuration to every logger.

    A refused command leaves the folder as it was."""

    def __init__(self, config: Mapping[str, Any], sources: Mapping[str, str] = {}) -> None:
        self.config, self.sources = dict(config), sources

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """See above."""
        if trainer.is_global_zero:
            for name, text in {"config.yaml": yaml.safe_dump(self.config, sort_keys=False), **self.sources}.items():
                with atomic(Path(trainer.default_root_dir) / name) as temporary:
                    temporary.write_text(text)
        for logger in trainer.loggers if self.config["resume"] else ():  # a new run's loggers were told before they wrote their files
            logger.log_hyperparams(self.config)
