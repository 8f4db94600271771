"""Whether conditional samples are of the class that was asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.metrics.base import RowMetric
from diffusion.metrics.reference import RealImages
from diffusion.support.errors import UserError


class ClassAccuracy(RowMetric):
    """The share of n generated images that a classifier, which has seen real images only, takes for the class they were asked to be
    (Ravuri & Vinyals 1905.10887 turned around: there the classifier learns from the samples).

    Raises UserError for a data set whose classes are not the classifier's, and for images without labels."""

    words, higher = ("accuracy",), True
    layer = "logits"

    def refer(self, imageset: RealImages) -> int:
        classes, self.width = self.width, 1  # a row for each image: right or wrong
        if classes != self.conditions.num_classes:
            raise UserError(
                f"The {self.extractor.name} extractor knows {classes} classes and the model is asked for {self.conditions.num_classes}: "
                "choose another metric.extractor, or drop this metric."
            )
        return 0

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c], and the classes they were asked to be, [b]."""
        if len(images) == 0:
            return
        if labels is None:
            raise UserError(f"{self.name} needs the classes that the images were asked to be, and this model has none.")
        right = self.store(images)[self.layer].argmax(1) == labels.to(self.extractor.device, non_blocking=True)
        self.rows.append(right.float()[:, None])

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)).double().mean(0)
