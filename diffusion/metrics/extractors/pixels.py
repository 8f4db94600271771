"""The pixels themselves as features."""

from pathlib import Path

from torch import Tensor, nn

from diffusion.metrics.extractors.base import Extractor
from diffusion.support.errors import UserError


class Flat(nn.Module):
    """[b, ...] to (features [b, d],)."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.flatten(1),)


class Pixels(Extractor):
    """Pixels u / 127.5 - 1 in a row. No weights: anything but None is refused."""

    name = "pixels"
    frechet = "fd-pixels"
    resize = "none"
    layers = ("features",)
    batch = 1024
    cheap = rigid = True

    def __init__(self, weights: str | None = None, cache: str | Path = ".cache") -> None:
        if weights is not None:
            raise UserError("The pixels extractor reads no weights: drop metric.weights.")
        super().__init__(Flat())

    def check(self, shape: tuple[int, ...]) -> None:
        """Any image will do; its size is the number of features."""
        height, width, self.channels = shape[-3:]
        self.dim = height * width * self.channels

    def prepare(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1
