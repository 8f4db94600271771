"""Whether conditional samples are of the class that was asked for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion.metrics.features import RowMetric
from diffusion.metrics.reference import RealImages
from diffusion.support.errors import UserError


class ClassAccuracy(RowMetric):
    """The share of n generated images that a classifier, which has seen real images only, takes for the class they were asked to be
    (Ravuri & Vinyals 1905.10887 turned around: there the classifier learns from the samples).

    Raises UserError for a data set whose classes are not the classifier's, and for images without labels."""

    words, higher_is_better = ("accuracy",), True
    layer = "logits"

    def refer(self, imageset: RealImages) -> int:
        if self.width != self.conditions.num_classes:
            raise UserError(
                f"The {self.extractor.name} extractor knows {self.width} classes and the model is asked for {self.conditions.num_classes}: "
                "choose another metric.extractor, or drop this metric."
            )
        return 0

    def columns(self) -> int:
        return 1

    def add(self, layers: Mapping[str, Tensor], labels: Tensor | None) -> None:
        """Whether each image's likeliest class is the one it was asked to be, [b], by torchmetrics."""
        from torchmetrics.functional.classification import multiclass_accuracy

        if labels is None:
            raise UserError(f"{self.name} needs the classes that the images were asked to be, and this model has none.")
        guessed, asked = layers[self.layer].argmax(1), labels.to(self.device, non_blocking=True)
        right = multiclass_accuracy(
            guessed[:, None], asked[:, None], self.width, average="micro", multidim_average="samplewise", validate_args=False
        )
        self.rows.append(right[:, None])

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)).double().mean(0)
