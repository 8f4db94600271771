"""Standard errors over the images drawn, and the groups of images that they are taken from."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

GROUPS = 10  # of images, where nothing else is said
Part = TypeVar("Part")  # the form in which a statistic takes a part of the images: their features [n, d], or sums over them


def standard_errors(statistic: Callable[[list[Part]], Tensor], parts: Sequence[Part]) -> Tensor:
    """The delete-a-group jackknife's standard errors of the values [k] of `statistic` over the images drawn: see `jackknife`."""
    return jackknife(without_each(statistic, parts))


def without_each(statistic: Callable[[list[Part]], Tensor], parts: Sequence[Part]) -> Tensor:
    """The values of `statistic` without each of the G groups in `parts`: [G, k]."""
    return torch.stack([statistic([*parts[:g], *parts[g + 1 :]]) for g in range(len(parts))])


def jackknife(values: Tensor) -> Tensor:
    """The standard error [k] of numbers of which these are the values [G, k] without each group of images (Efron & Tibshirani 1993,
    eq. 11.5, with groups for single images): sqrt((G - 1)/G sum_g (value without g - their mean)^2). The weights of the model and the
    real images are taken as they are. Unlike the bootstrap it repeats no image, which would change a distance."""
    return ((len(values) - 1) * (values - values.mean(0)).square().mean(0)).sqrt()


def dealt(numbers: Tensor, n: int, classes: int) -> Tensor:
    """The positions of images with these `numbers` < n when all n are sorted by class; image i is of class i mod `classes`.

    Groups dealt from this order have an even share of each class. Dealt from the images' own order, ten groups of images of ten classes
    would be the classes themselves, and their differences would not be sampling errors."""
    kind = numbers % classes
    return kind * (n // classes) + kind.clamp(max=n % classes) + numbers // classes
