"""The LightningDataModule: one data set, its cache and the training stream."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.data.base import Dataset
from diffusion.data.cache import ImageSet
from diffusion.data.serving import Plain, Serving
from diffusion.data.stream import Batch, Stream, held_out
from diffusion.support.errors import UserError
from diffusion.support.ranges import Count, Natural
from diffusion.support.signals import heed_the_parent_alone
from diffusion.typing import Conditions, Rows


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
    """Serves `dataset` as batches of its items [b, ...] (uint8 pictures [b, h, w, c], float32 vectors [b, d], or what `serving` makes of
    them) and of what `conditions` say of them, [b, ...]; see `Stream`.

    batch_size: items in a batch over all devices.
    num_workers: processes that fetch ahead; 0 fetches in the training process, which a mapped cache rarely makes slow.
    device_resident: hold the whole set on the device; batches are then made there and cost the host nothing.
    flip: whether the training step mirrors images at random, by `diffusion.data.flip`, which says why it is not done here.
    images: the opened ImageSet, after setup; held: the numbers of the items that training does not see, by dataset.holdout.

    A checkpoint keeps the data's sha256, and a run is resumed on these data alone. The position in them needs no state: it is the number
    of optimizer steps done, which Lightning saves and restores before it asks for batches. A step that was not finished is begun again,
    and another number of devices, or of batches to a step, changes nothing as long as a step has as many items.

    Raises UserError, from setup: a batch size that does not fit, a set too large for the device, and whatever `Dataset.load` raises;
    from load_state_dict: other data than those of the checkpoint.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: Count,
        seed: Natural = 0,
        num_workers: Natural = 0,
        device_resident: bool = False,
        conditions: Conditions = Classes(),  # noqa: B008 (frozen)
        serving: Serving = Plain(Pixels()),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.device_resident = device_resident
        self.conditions = conditions
        self.serving = serving
        self.flip = dataset.flip

    def prepare_data(self) -> None:
        self.dataset.load()

    def setup(self, stage: str | None = None) -> None:
        self.images: ImageSet = self.dataset.load()
        images = torch.from_numpy(self.serving.items(self.images))
        labels = self.conditions.labels(self.images)
        if self.device_resident:
            images, labels = self._move(images), None if labels is None else self._move(labels)
        trainer = self.fitting()
        places = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        seen, self.held = held_out(len(images), self.dataset.holdout)
        if 0 < len(self.held) < trainer.world_size:
            raise UserError(f"dataset.holdout={self.dataset.holdout} keeps fewer items from training than there are devices: say more.")
        rows = seen.to(images.device) if len(self.held) else None
        self.stream = Stream(images, labels, self.batch_size, self.seed, *places, rows=rows)

    def items(self, numbers: Tensor) -> Batch:
        """The items with these numbers, as a batch on the trainer's device."""
        device, stream = self.fitting().strategy.root_device, self.stream
        chosen = numbers.to(stream.images.device)
        labels = None if stream.labels is None else stream.labels[chosen].to(device)
        return Batch(stream.images[chosen].to(device), labels)

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint keeps: the data's hash."""
        return {"sha256": self.images.sha256}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Called by Lightning after setup where a run is resumed; checkpoints of older versions have no state, so for these it is not."""
        if state["sha256"] != self.images.sha256:
            raise UserError(
                f"The data are not those of the run: {self.dataset.name} has the sha256 {self.images.sha256[:12]}, and the run began with "
                f"{state['sha256'][:12]}; bring its files back to what they were, or begin a run with another name=..."
            )

    def fitting(self) -> Trainer:
        """The trainer that batches are served to. Raises ValueError without one."""
        if self.trainer is None:
            raise ValueError("A DataModule serves a Trainer's ranks: give it to trainer.fit, which sets it up.")
        return self.trainer

    @property
    def per_step(self) -> int:
        """Items to an optimizer step, over all devices and accumulated batches."""
        return self.batch_size * self.fitting().accumulate_grad_batches

    def train_dataloader(self) -> Restartable:
        """Called by Lightning before the first step of a run or of its resumption."""
        trainer = self.fitting()
        done, progress = trainer.global_step * trainer.accumulate_grad_batches, trainer.fit_loop.epoch_loop.batch_progress
        if progress.total.ready != done:  # stopped within a step, or with another number of batches to a step: by it Lightning knows when
            for counted in (progress.total, progress.current):  # a step is whole
                counted.load_state_dict(dict.fromkeys(counted.state_dict(), done))
        return Restartable(self._remaining)

    def _remaining(self) -> Iterable[Batch]:
        trainer = self.fitting()
        stream = replace(self.stream, start=trainer.global_step * trainer.accumulate_grad_batches)
        if self.device_resident:
            return stream
        pinned = trainer.strategy.root_device.type == "cuda"
        heed = heed_the_parent_alone
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=pinned, worker_init_fn=heed)

    def _move(self, tensor: Rows) -> Any:
        device = self.fitting().strategy.root_device
        try:
            return tensor.to(device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.dataset.name} takes {tensor.nbytes / 2**30:.1f} GiB, more than {device} has free: say data.device_resident=false."
            ) from error
