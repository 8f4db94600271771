"""One batch of one process as a share of an optimizer step, and the random numbers that belong to it."""

from dataclasses import dataclass

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from diffusion.support.seeds import mixed, reseed


@dataclass(frozen=True)
class Share:
    """The places first, ..., first + count - 1 of the `total` = batch_size x accumulate samples of an optimizer step.

    Sample i of rank r in the step's batch a has the place a batch_size + r count + i, and its random numbers are row `place` of those drawn
    for the whole step. So a step is a function of (seed, step): the same, up to the rounding of sums, on any number of processes and with
    any accumulation of the same product. Every process draws all rows, in the same order, and keeps its own.

    `begin` seeds the draws and `end` leaves them: what the network draws itself (dropout) is not that of another share."""

    total: int
    first: int
    count: int

    @classmethod
    def of(cls, count: int, trainer: Trainer, batch_idx: int) -> "Share":
        """That of this process's `count` samples in the trainer's batch `batch_idx`; a step's first batch is a multiple of accumulate."""
        accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
        return cls(accumulate * world * count, (batch_idx % accumulate * world + trainer.global_rank) * count, count)

    def begin(self, seed: int, step: int) -> None:
        """Seed torch for the draws of a step, which are the same for all shares."""
        reseed(mixed(seed, 0, step))

    def end(self, seed: int, step: int) -> None:
        """Seed torch for what this share alone draws; the first share goes on with the draws' stream."""
        if self.first:
            reseed(mixed(seed, self.first // self.count, step))

    def own(self, whole: Tensor) -> Tensor:
        """The rows [count, ...] of the step's [total, ...]; a copy, so that the others' are freed."""
        return whole if len(whole) == self.count else whole[self.first : self.first + self.count].clone()

    def rand(self, device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1), [count]."""
        return self.own(torch.rand(self.total, device=device))

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers of the shape [count, ...], dtype and layout of x.

        Rows lie one after another whatever the layout inside of them: a device fills memory in its order, so that another layout would
        be other numbers."""
        if self.total == self.count:
            return torch.randn_like(x)
        row = torch.empty_like(x[0])
        return self.own(x.new_empty_strided((self.total, *row.shape), (row.numel(), *row.stride())).normal_())
