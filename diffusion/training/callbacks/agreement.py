"""What several ranks settle after a step without waiting for a device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.support.ranks import rank_and_world


class Agreement:
    """`agreement(said)` is the largest number that any rank has said, the same on all of them after the same step.

    Of several ranks it is known one step later: the reduction is begun after a step and read after the next, on the CPU, so that no device
    is waited for. Every rank calls it once after each step."""

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None
        self.asked: tuple[Tensor, Any] | None = None

    def begin(self) -> None:
        """Make the ranks' group, if there are several; all ranks at once."""
        self.asked = None
        if rank_and_world()[1] > 1:
            self.group = dist.new_group(backend="gloo")

    def __call__(self, said: int) -> int:
        if self.group is None:
            return said
        before, number = self.asked, torch.tensor(said)
        self.asked = number, dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group, async_op=True)
        if before is None:
            return 0
        before[1].wait()
        return int(before[0])
