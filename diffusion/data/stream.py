"""The training stream: batches without end, each a pure function of (seed, optimizer step, place in the step)."""

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
from diffusion.typing import Rows


class Batch(NamedTuple):
    """images: the items as the data hold them, uint8 [b, h, w, c] or float32 [b, d] or [b, ...]; labels [b, ...]: what the conditions say
    of them, such as int64 classes [b], or None for nothing."""

    images: Tensor
    labels: Tensor | None


HOLDOUT = 0x401D  # the seed of the items that are held out


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Epoch's order of the numbers 0..n-1, int64 [n], made on the device and the same on every device.

    The argsort of n distinct pseudo-random words. The last result is kept, since a whole epoch asks for it.
    """
    word = int(splitmix64(int(splitmix64(seed, 1)) + epoch, 1))
    return splitmix64(word, n, device).argsort()


def held_out(n: int, share: float) -> tuple[Tensor, Tensor]:
    """(the numbers of the items that training sees, in order, those that it does not): round(share n) of n items, which depend on n and the
    share alone, so that runs of other seeds hold the same ones out. They are in no order. Raises UserError where none or all would be."""
    count = round(share * n)
    if share and not 0 < count < n:
        raise UserError(f"dataset.holdout={share} keeps {count} of {n} items from training: say a share that leaves some of both.")
    order = permutation(n, HOLDOUT, 0)
    return order[count:].sort().values, order[:count]


@dataclass(frozen=True, eq=False)
class Stream(IterableDataset):
    """Training batches without end; the only state is the position, so a run resumes anywhere.

    images: the items [n, ...], on the host (mapped from disk) or on the device; indices are made and used where the items
        are, so the device form never waits for the host.
    labels: what the conditions say of the items, [n, ...] on the same device, or None.
    rows: the numbers of the items that are served, on the same device, n of them below; None for all.
    batch_size: items in a global batch, that is over all ranks; each rank gets batch_size / world of them.
    accumulate: global batches in an optimizer step.
    start: the number of the first global batch.

    An epoch is n // (batch_size accumulate) optimizer steps in the order of its permutation, the incomplete last one dropped. A
    step's batches, and of each the ranks' shares, follow one another: so a step's items depend neither on the number of
    ranks nor on how the step is made of batches. In a DataLoader the workers take turns and the order is the same.

    Raises UserError: batch_size x accumulate above n, batch_size below 1, or not divisible by world.
    """

    images: Tensor
    labels: Rows | None
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    start: int = 0
    rows: Tensor | None = None

    @property
    def n(self) -> int:
        """How many items are served."""
        return len(self.images if self.rows is None else self.rows)

    def __post_init__(self) -> None:
        n = self.n
        if not 1 <= self.batch_size <= n:
            raise UserError(f"batch_size={self.batch_size} does not fit a data set of {n} items: say 1 to {n}.")
        if self.batch_size * self.accumulate > n:
            raise UserError(
                f"A step of batch_size={self.batch_size} x accumulate={self.accumulate} = {self.batch_size * self.accumulate} items "
                f"does not fit a data set of {n}: lower one of them."
            )
        if self.batch_size % self.world:
            raise UserError(
                f"batch_size={self.batch_size} is the batch over all devices and cannot be shared equally by "
                f"{self.world}: say a multiple of {self.world}."
            )

    def batch(self, position: int) -> Batch:
        """This rank's share of global batch number `position`, counted from 0 over all epochs."""
        n, step, share = self.n, self.batch_size * self.accumulate, self.batch_size // self.world
        epoch, index = divmod(position, n // step * self.accumulate)
        order = permutation(n, self.seed, epoch, self.images.device)
        first = index * self.batch_size + self.rank * share
        chosen = order[first : first + share]
        chosen = chosen if self.rows is None else self.rows[chosen]
        return Batch(self.images[chosen], None if self.labels is None else self.labels[chosen])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self.batch, count(self.start + first, stride))


def flip(images: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Mirror each image of [b, h, w, c] left to right with probability 1/2, on its own device, without a host sync.

    That is where `uniform` [b] in [0, 1) is below 1/2; without it the numbers are drawn here. The training step calls it,
    with the numbers of its images' places in the step: Lightning's batch-transfer hooks run before on_train_batch_start and
    would draw from the state that the last step left. Raises ValueError for items that are not pictures.
    """
    if images.ndim != 4:
        raise ValueError(f"Only pictures [b, h, w, c] can be mirrored, and these items are {list(images.shape)}: say dataset.flip=false.")
    mirrored = torch.rand(len(images), device=images.device) if uniform is None else uniform
    return torch.where(mirrored[:, None, None, None] < 0.5, images.flip(2), images)
