"""The Inception Score."""

from collections.abc import Sequence
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.metrics.base import Numbers, on_float64
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import RowMetric
from diffusion.metrics.reference import RealImages
from diffusion.support.ranges import Few, Several, Some


def inception_scores(logits: Tensor, splits: int) -> Tensor:
    """exp of the mean over images of KL(p(y|x) || p(y)) (Salimans et al. 1606.03498, sec. 4), of each of `splits` runs of images.

    logits [n, classes]; returns [splits], float64."""
    log_p = on_float64(logits).log_softmax(1)
    edges = [i * len(log_p) // splits for i in range(splits + 1)]
    scores = []
    for start, stop in pairwise(edges):
        chunk = log_p[start:stop]
        log_marginal = chunk.logsumexp(0) - log(len(chunk))  # finite where every probability underflows
        scores.append((chunk.exp() * (chunk - log_marginal)).sum(1).mean().exp())
    return torch.stack(scores)


class InceptionScore(RowMetric):
    """The mean of `inception_scores` over `splits` runs of images, in the images' order, and under NAME/std the standard deviation.

    It looks at generated images only, through the classes of an extractor that has them. Raises ValueError for more splits than images."""

    words, higher_is_better = ("is",), True
    standard = ("is",)
    layer = "logits"

    def __init__(self, extractor: Extractor, n: Several, cache: str | Path, groups: Some = 0, splits: Few = 10) -> None:
        super().__init__(extractor, n, cache, groups)
        if not 1 <= splits <= n:
            raise ValueError(f"{self.name} cannot be split into metric splits={splits}: use 1 to {n}.")
        self.splits = splits

    def refer(self, imageset: RealImages) -> int:
        return 0

    def statistic(self, parts: Sequence[Tensor]) -> Tensor:
        return inception_scores(torch.cat(list(parts)), self.splits).mean(0, keepdim=True)

    def compute(self) -> Numbers:
        """The mean and the deviation over the splits; otherwise as in `RowMetric`."""
        rows, groups = self.gathered()
        scores = inception_scores(rows, self.splits)
        return {self.name: scores.mean(), f"{self.name}/std": scores.std(unbiased=False)} | self.errors(groups)

    def intervals(self) -> dict[str, str]:
        return super().intervals() | {"std": f"standard deviation over the {self.splits} splits"}

    def settings(self) -> dict[str, Any]:
        return {"splits": self.splits}
