"""Additions to Lightning's loggers for resumed runs and for sweeps."""

import csv
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from diffusion.support.files import appending, atomic


class CSV(CSVLogger):
    """Lightning's CSVLogger with each row in the file as soon as it is known, which a resumed run goes on with; stock Lightning keeps up to
    a hundred in memory, and deletes the file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of metrics.csv, made when first asked for."""
        if self._experiment is None:
            self._experiment = Appending(self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """One row."""
        super().log_metrics(metrics, step)
        self.save()


class Appending(ExperimentWriter):
    """A writer that keeps an existing file and its columns."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        """All rows that are not in the file yet, or none."""
        if self.metrics and self._record_new_keys() and self._fs.isfile(self.metrics_file_path):
            self._rewrite_with_new_header(self.metrics_keys)  # before `appending`, since it makes the file longer
        with appending(self.metrics_file_path):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            rows = list(csv.DictReader(file))
        with atomic(self.metrics_file_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


def purge(logger: Logger, step: int) -> None:
    """Tell TensorBoard, if that is the logger, that what was written so far of `step` and later steps will be made again; others cannot
    take back what they were told."""
    if isinstance(logger, TensorBoardLogger):
        writer = logger.experiment
        writer.close()
        writer.purge_step = step  # with which its next file begins


@contextmanager
def run_of_its_own() -> Iterator[None]:
    """End the wandb run that was begun inside, if one was: the next job of a sweep would go on in it."""
    code = 1
    try:
        yield
        code = 0
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=code)


def quiet() -> None:
    """Lightning's messages to the run's log, without its advertisements and its warnings about itself."""
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
