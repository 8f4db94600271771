"""DINOv2, through timm."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.metrics.cache import UNREADABLE
from diffusion.metrics.extractors.base import Extractor, own_random_state
from diffusion.support.errors import UserError
from diffusion.support.files import lock

ARCHITECTURE = "vit_large_patch14_dinov2.lvd142m"


class ClassToken(nn.Module):
    """A timm network without a head, its answer as a tuple of one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.network(x),)


class DINOv2(Extractor):
    """The 1,024 features, the normalised class token, of DINOv2's ViT-L/14 (Oquab et al. 2304.07193), for the FD-DINOv2 of Stein et al.
    2306.04675: bicubic resize with antialiasing to 224x224, then ImageNet's mean and deviation.

    `weights` is a path to Meta's or timm's file, or None to download timm's once. Raises UserError without timm (the extra "dinov2"),
    without a network to download from, or for a file that does not hold these weights."""

    name = "dinov2"
    frechet = "fd-dinov2"
    dim = 1024
    resize = "bicubic with antialiasing to 224x224"
    batch = 64
    layers = ("features",)

    def __init__(self, weights: str | Path | None = None, cache: str | Path = ".cache") -> None:
        try:
            import timm
        except ImportError:
            raise UserError("DINOv2 needs timm: install it with pip install 'diffusion[dinov2]'.") from None
        if weights is not None and not Path(weights).is_file():
            raise UserError(f"There is no file {weights}: give the DINOv2 weights by metric.weights=PATH.")
        source = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
        try:
            with own_random_state(), lock(Path(cache) / "extractors" / "dinov2.lock"):
                network = timm.create_model(ARCHITECTURE, pretrained=True, num_classes=0, img_size=224, **source)
        except UNREADABLE as error:
            where = weights or "timm's download"
            raise UserError(f"{where} does not give the DINOv2 weights ({error}): give a file by metric.weights=PATH.") from None
        super().__init__(ClassToken(network))
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def prepare(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (resized - self.mean.to(resized)) / self.std.to(resized)
