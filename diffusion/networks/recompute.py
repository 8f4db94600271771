"""Gradient checkpointing (Chen et al. 2016, 1604.06174): memory for time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def through(checkpointing: bool, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs). With `checkpointing`, where gradients are recorded, only the inputs are kept for them: the rest is computed again on
    the way back, dropout with the same masks, so that the gradients are the same."""
    if not checkpointing or not torch.is_grad_enabled():
        return block(*inputs)
    if torch.backends.cuda.flash_sdp_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    # An objective that derives twice allows no fused attention; it is over by the way back, which must attend as the way there.
    return checkpoint(_plainly, block, *inputs, use_reentrant=False)


def _plainly(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return block(*inputs)
