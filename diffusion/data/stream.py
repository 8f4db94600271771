"""The training stream: batches without end, each a pure function of (seed, position)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from diffusion.support.errors import UserError
from diffusion.support.seeds import splitmix64


class Batch(NamedTuple):
    """images: the items as the data hold them, uint8 [b, h, w, c] or float32 [b, d] or [b, ...]; labels: int64 [b], or None where the
    set has no classes."""

    images: Tensor
    labels: Tensor | None


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Epoch's order of the numbers 0..n-1, int64 [n], made on the device and the same on every device.

    The argsort of n distinct pseudo-random words. The last result is kept, since a whole epoch asks for it.
    """
    word = int(splitmix64(int(splitmix64(seed, 1)) + epoch, 1))
    return splitmix64(word, n, device).argsort()


@dataclass(frozen=True, eq=False)
class Stream(IterableDataset):
    """Training batches without end; the only state is the position, so a run resumes anywhere.

    images: the items [n, ...], on the host (mapped from disk) or on the device; indices are made and used where the items
        are, so the device form never waits for the host.
    labels: int64 [n] on the same device, or None.
    batch_size: items in a global batch, that is over all ranks; each rank gets batch_size / world of them.
    start: number of global batches already consumed.

    An epoch is n // batch_size global batches in the order of its permutation, the incomplete last one dropped. Rank r
    takes the r-th share of each, so the global batches do not depend on the number of ranks. In a DataLoader the
    workers take turns and the order is the same.

    Raises UserError: batch_size above n, below 1, or not divisible by world.
    """

    images: Tensor
    labels: Tensor | None
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        n = len(self.images)
        if not 1 <= self.batch_size <= n:
            raise UserError(f"batch_size={self.batch_size} does not fit a data set of {n} items: say 1 to {n}.")
        if self.batch_size % self.world:
            raise UserError(
                f"batch_size={self.batch_size} is the batch over all devices and cannot be shared equally by "
                f"{self.world}: say a multiple of {self.world}."
            )

    def batch(self, position: int) -> Batch:
        """This rank's share of global batch number `position`, counted from 0 over all epochs."""
        epoch, index = divmod(position, len(self.images) // self.batch_size)
        order = permutation(len(self.images), self.seed, epoch, self.images.device)
        share = self.batch_size // self.world
        first = index * self.batch_size + self.rank * share
        chosen = order[first : first + share]
        return Batch(self.images[chosen], None if self.labels is None else self.labels[chosen])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self.batch, count(self.start + first, stride))


def flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image of [b, h, w, c] left to right with probability 1/2, on its own device, without a host sync.

    Without a generator it draws from torch's global one of that device, which the training step seeds. So the training
    step calls it, after seeding: Lightning's batch-transfer hooks run before on_train_batch_start and would draw from
    the state that the last step left. Raises ValueError for items that are not pictures.
    """
    if images.ndim != 4:
        raise ValueError(f"Only pictures [b, h, w, c] can be mirrored, and these items are {list(images.shape)}: say dataset.flip=false.")
    mirrored = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)
