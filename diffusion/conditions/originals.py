"""Conditions that are pictures, as an autoencoder is told one."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion.support.build import build
from diffusion.support.errors import UserError


@dataclass(frozen=True)
class Originals:
    """Image number i is told picture i of a data set, uint8 [h, w, c], or of `shown` [n, ...], from the first again after the last.

    `dataset` is the configuration of a data set, which is read when a picture is asked for; nothing of it is needed in training, where the
    batch itself is what is reconstructed."""

    dataset: Any = field(default=None, repr=False, compare=False)
    shown: Any = field(default=None, repr=False, compare=False)

    num_classes: ClassVar[int] = 0
    period: ClassVar[int] = 1
    given: ClassVar[bool] = True

    @cached_property
    def everything(self) -> Any:
        """All the pictures [n, ...], a tensor, or an array in a file."""
        return build(self.dataset, "dataset").load().images if self.shown is None else self.shown

    def network(self) -> dict[str, Any]:
        """The arguments about the condition with which a network is built: none."""
        return {}

    def around(self, network: nn.Module) -> nn.Module:
        """The network: nothing is trained with it. Raises UserError for one that is no autoencoder."""
        if not hasattr(network, "moments"):
            name = type(network).__name__
            raise UserError(f"conditions=originals tells an autoencoder its picture, and {name} is none: say network=autoencoder.")
        return network

    def labels(self, data: Any) -> Tensor | None:
        """What `of` is given of a data set's items: nothing."""
        return None

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of a batch of training images: the batch itself says them."""
        return None

    def null(self, cond: Tensor) -> Tensor:
        """Raises ValueError: an autoencoder without a picture makes nothing."""
        raise ValueError("An autoencoder is told a picture, and has no null condition to be guided away from: leave guidance out.")

    def names(self, indices: Tensor) -> list[str] | None:
        """What images are asked for, in words: nothing."""
        return None

    def ask(self, indices: Tensor) -> Tensor:
        """The pictures of the images with these numbers [b]."""
        rows = indices % len(self.everything)
        return self.everything[rows] if isinstance(self.everything, Tensor) else torch.from_numpy(self.everything[rows.numpy()])

    def numbered(self, number: int, key: str) -> Tensor:
        """Picture `number` [1, ...]. Raises UserError for one that is not there."""
        if not 0 <= number < len(self.everything):
            raise UserError(f"{key} names picture {number}, and there are those from 0 to {len(self.everything) - 1}.")
        return self.ask(torch.tensor([number]))

    def parse(self, words: Any, key: str = "the condition") -> Tensor:
        """Raises UserError: a picture is no word."""
        raise UserError(f"An autoencoder is told pictures, not {key}={words}; say edit.image=FILE, or leave it out.")

    def describe(self) -> dict[str, Any]:
        """What the passport says of how images got their conditions."""
        return {"name": type(self).__name__}

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set, as plain data: none."""
        return {}
