"""LPIPS, the perceptual distance of two pictures, by torchmetrics."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from diffusion.metrics.cache import UNREADABLE
from diffusion.metrics.extractors.base import own_random_state
from diffusion.support.errors import UserError

SMALLEST = 16  # pixels of a side: VGG halves it four times
RANDOM = "random"


@dataclass(frozen=True)
class LPIPS:
    """LPIPS (Zhang et al. 2018, 1801.03924) in the features of VGG-16: lpips(x, y) of pictures [b, c, h, w] in [-1, 1] -> [b].

    `weights` is the file of torchvision's vgg16, or `random` for a network that was never trained, to try things out; how the layers are
    weighed comes with torchmetrics. Grey pictures are taken three times. The network is made at the first call and is no part of anything
    that is trained, though gradients pass through it to the pictures.

    Raises UserError at the first call without weights, for a file that does not hold them, and for pictures below 16 pixels."""

    weights: str | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < SMALLEST:
            raise UserError(f"LPIPS looks at pictures of {SMALLEST} pixels or more, and these have {min(x.shape[-2:])}: say objective.w=0.")
        network = lpips_network(self.weights, x.device)
        with torch.autocast(x.device.type, enabled=False):
            x, y = (v.float().expand(-1, 3, -1, -1) if v.shape[1] == 1 else v.float() for v in (x, y))
            return network(x, y).flatten()


@lru_cache(maxsize=2)
def lpips_network(weights: str | None, device: torch.device) -> nn.Module:
    """The network on a device, made once. Raises UserError as `LPIPS` does."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    if weights is None:
        raise UserError(f"LPIPS needs the weights of torchvision's vgg16: say objective.perceptual.weights=PATH, or ={RANDOM} to try.")
    found = None if weights == RANDOM else backbone(weights)
    with own_random_state():
        network = _NoTrainLpips(net="vgg", pnet_rand=True)
    try:
        if found is not None:
            own = {name: found[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()}  # slice1.0.weight
            network.net.load_state_dict(own)
    except UNREADABLE:
        raise UserError(f"{weights} does not hold the weights of torchvision's vgg16; give their file.") from None
    return network.to(device)


def backbone(file: str) -> dict[str, Tensor]:
    """The weights in torchvision's file. Raises UserError if it cannot be read as plain tensors."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {file}: give torchvision's vgg16 by objective.perceptual.weights=PATH.") from None
    except UNREADABLE:
        raise UserError(f"{file} is not a file of plain tensors: give torchvision's vgg16 by objective.perceptual.weights=PATH.") from None
