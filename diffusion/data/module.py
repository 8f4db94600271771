"""The LightningDataModule: one data set, its cache and the training stream."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from diffusion.data.base import Dataset
from diffusion.data.cache import ImageSet
from diffusion.data.stream import Batch, Stream
from diffusion.support.errors import UserError
from diffusion.support.ranges import Count, Natural


@dataclass(frozen=True)
class Restartable:
    """An iterable made anew at each iter(), so that it begins where training stands and not where it stood.

    Not a DataLoader, and without a length: Lightning adds no sampler and sees one epoch without end, which max_steps
    closes.
    """

    make: Callable[[], Iterable[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())


class DataModule(LightningDataModule):
    """Serves `dataset` as batches of its items [b, ...] (uint8 pictures [b, h, w, c], float32 vectors [b, d]) and labels [b]; see `Stream`.

    batch_size: items in a batch over all devices.
    num_workers: processes that fetch ahead; 0 fetches in the training process, which a mapped cache rarely makes slow.
    device_resident: hold the whole set on the device; batches are then made there and cost the host nothing.
    flip: whether the training step mirrors images at random, by `diffusion.data.flip`, which says why it is not done here.
    images: the opened ImageSet, after setup.

    Resuming needs no state of this object: the position is the number of batches whose step is done, which Lightning's loop counts, saves
    and restores before it asks for batches.

    Raises UserError, from setup: a batch size that does not fit, a set too large for the device, and whatever `Dataset.load` raises.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: Count,
        seed: Natural = 0,
        num_workers: Natural = 0,
        device_resident: bool = False,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.device_resident = device_resident
        self.flip = dataset.flip

    def prepare_data(self) -> None:
        self.dataset.load()

    def setup(self, stage: str | None = None) -> None:
        self.images: ImageSet = self.dataset.load()
        images = torch.from_numpy(self.images.images)
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels)
        if self.device_resident:
            images, labels = self._move(images), None if labels is None else self._move(labels)
        trainer = self.fitting()
        self.stream = Stream(images, labels, self.batch_size, self.seed, trainer.global_rank, trainer.world_size)

    def fitting(self) -> Trainer:
        """The trainer that batches are served to. Raises ValueError without one."""
        if self.trainer is None:
            raise ValueError("A DataModule serves a Trainer's ranks: give it to trainer.fit, which sets it up.")
        return self.trainer

    def train_dataloader(self) -> Restartable:
        return Restartable(self._remaining)

    @property
    def consumed(self) -> int:
        """Global batches whose training step is done, over all epochs and resumed runs."""
        total: Any = self.fitting().fit_loop.epoch_loop.batch_progress.total  # declared without `processed`, which it has
        return total.processed

    def _remaining(self) -> Iterable[Batch]:
        stream = replace(self.stream, start=self.consumed)
        if self.device_resident:
            return stream
        pinned = self.fitting().strategy.root_device.type == "cuda"
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=pinned)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        device = self.fitting().strategy.root_device
        try:
            return tensor.to(device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.dataset.name} takes {tensor.nbytes / 2**30:.1f} GiB, more than {device} has free: say data.device_resident=false."
            ) from error
