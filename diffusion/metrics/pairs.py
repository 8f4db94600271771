"""Numbers of pairs: each reconstruction with its own picture, and the Fréchet distance of reconstructions."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.conditions import Originals
from diffusion.metrics.base import UNCONDITIONAL, Metric, abbreviated
from diffusion.metrics.distance import FrechetDistance
from diffusion.metrics.reference import RealImages, facts
from diffusion.support.errors import UserError
from diffusion.support.ranges import Several
from diffusion.typing import Conditions

LEAST = 6  # pixels of a side that a window of 11 can be mirrored at


class PairMetric(Metric):
    """The mean over n reconstructions of a number of each with its own picture, and its standard error over them under NAME/error; of a
    data set with fewer pictures, of all of them.

    A subclass has a `word` and `each(images, originals) -> [b]`. Raises UserError, from `setup`, for images that have no original."""

    word: ClassVar[str]
    higher_is_better = True
    values: list[Tensor]

    def __init__(self, n: Several = 1000) -> None:
        super().__init__()
        self.name_by(n)
        self.keep("values", dtype=torch.float64)

    def name_by(self, n: int) -> None:
        self.name, self.n = f"{self.word}@{abbreviated(n)}", n

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        require_originals(self.name, conditions)
        self.name_by(min(self.n, len(imageset.images)))
        self.to(device)
        self.reference = facts(imageset, self.n)
        self.reset()

    @abstractmethod
    def each(self, images: Tensor, originals: Tensor) -> Tensor:
        """The numbers [b] of pictures [b, c, h, w] of 0 to 255, float32, on `device`."""

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's reconstructions and, as their labels, their originals, each uint8 [b, h, w, c]; b may be 0."""
        if len(images) and labels is not None:
            self.values.append(self.each(*(v.to(self.device, non_blocking=True).movedim(-1, 1).float() for v in (images, labels))).double())

    def compute(self) -> dict[str, Tensor]:
        values = self.kept("values")
        self.require_n(len(values))
        return self.mean_of_images(values)

    def passport(self) -> dict[str, Any]:
        of = {"quantisation": "uint8", "extractor": {"name": self.word}, "reference": self.reference, "statistics": ""}
        return {"metric": self.name, "n": self.n, **of, "intervals": {"error": "standard error over the images"}}


class PSNR(PairMetric):
    """The peak signal-to-noise ratio in decibels by torchmetrics, 10 log10(255^2 / mean squared error) of each picture of 8 bits.

    One without any error counts as if a single level of one channel of one pixel were wrong."""

    word = "psnr"

    def each(self, images: Tensor, originals: Tensor) -> Tensor:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        values = peak_signal_noise_ratio(images, originals, data_range=255.0, reduction="none", dim=(1, 2, 3))
        return values.clamp(max=10 * math.log10(255**2 * images[0].numel()))


class SSIM(PairMetric):
    """The structural similarity (Wang et al. 2004, eq. 13) by torchmetrics, over a Gaussian window of deviation 1.5 at each pixel, 11 wide,
    the picture mirrored beyond its sides, K1 = 0.01 and K2 = 0.03. Raises UserError, from `setup`, for sides below 6 pixels."""

    word = "ssim"

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        super().setup(imageset, device, conditions)
        if (side := min(imageset.images.shape[1:3])) < LEAST:
            raise UserError(f"{self.name} needs pictures of {LEAST} pixels or more, and these have {side}: say metric=[psnr,rfd].")

    def each(self, images: Tensor, originals: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure

        return torch.as_tensor(structural_similarity_index_measure(images, originals, data_range=255.0, reduction="none")).reshape(-1)


class ReconstructionDistance(FrechetDistance):
    """The Fréchet distance between the features of n reconstructions and those of the data set: rFD, and rFID with the FID network; of a
    data set with fewer pictures, of the reconstructions of all of them.

    Raises UserError, from `setup`, for images that are no reconstructions."""

    words = ("rfd",)
    standard = ("rfid",)

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        require_originals(self.name, conditions)
        self.name_by(min(self.n, len(imageset.images)))
        super().setup(imageset, device, conditions)


def require_originals(name: str, conditions: Conditions) -> None:
    """Raises UserError unless these are the conditions of reconstructions."""
    if not isinstance(conditions, Originals):
        raise UserError(f"{name} compares a reconstruction with its own picture, so it is for task=autoencoder; say another metric.")
