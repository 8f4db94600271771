"""Conditions that are nothing, or a class: int64 [b], of which -1 is the null condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion.denoiser import null
from diffusion.support.errors import UserError
from diffusion.support.ranges import NonNegative, Some
from diffusion.support.seeds import mixed


@dataclass(frozen=True)
class Unconditional:
    """No condition; the labels of a data set, if it has any, are ignored."""

    num_classes: ClassVar[int] = 0
    period: ClassVar[int] = 1
    given: ClassVar[bool] = False

    def network(self) -> dict[str, int]:
        """The arguments about the condition with which a network is built."""
        return {"num_classes": 0}

    def around(self, network: nn.Module) -> nn.Module:
        """The network: nothing is trained with it."""
        return network

    def labels(self, data: Any) -> Tensor | None:
        """What `of` is given of a data set's items: nothing."""
        return None

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of a batch of training images with these labels: none."""
        return None

    def names(self, indices: Tensor) -> list[str] | None:
        """What images are asked for, in words: nothing."""
        return None

    def null(self, cond: Tensor) -> Tensor:
        """As `diffusion.denoiser.null`: there is no condition of which it could be asked."""
        return null(cond)

    def ask(self, indices: Tensor) -> Tensor | None:
        """The conditions of images number `indices`: none."""
        return None

    def parse(self, words: Any, key: str = "the condition") -> Tensor:
        """Raises UserError: there is nothing to ask for."""
        raise UserError(f"This model was trained without a condition, so {key}={words} cannot be asked of it; leave it out.")

    def describe(self) -> dict[str, Any] | None:
        """What the passport says of how images got their conditions."""
        return None

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set, as plain data: none."""
        return {}


@dataclass(frozen=True, init=False)
class Classes:
    """One of `num_classes` classes; with 0 classes, as of a data set without labels, there is no condition.

    Image number i is of class i mod num_classes; with `frequencies`, its class is drawn with those weights by a random number that depends
    on i alone. `frequencies="data"` stands for how often each class is in the data (`facts` counts).
    `null_class=False` is of a model that was trained elsewhere and has not learned what no class is.

    Raises ValueError for frequencies that are not a weight for each class."""

    _said: int | None
    frequencies: Sequence[float] | str | None
    null_class: bool

    def __init__(
        self, num_classes: Some | None = None, frequencies: Sequence[NonNegative] | str | None = None, null_class: bool = True
    ) -> None:
        object.__setattr__(self, "_said", num_classes)  # None until `facts` has read the number from the data
        object.__setattr__(self, "frequencies", frequencies)
        object.__setattr__(self, "null_class", null_class)
        if isinstance(frequencies, str) and frequencies != "data":
            raise ValueError(f"conditions.frequencies={frequencies} should be null, data, or a list of weights.")
        if frequencies is None or isinstance(frequencies, str) or num_classes is None:
            return
        if not isinstance(frequencies, list | tuple) or not all(isinstance(weight, int | float) for weight in frequencies):
            raise ValueError(f"conditions.frequencies={frequencies} should be null, data, or a list of weights.")
        if len(frequencies) != num_classes or min(frequencies) < 0 or not 0 < sum(frequencies) < float("inf"):
            raise ValueError(f"conditions.frequencies should be {num_classes} weights, none below 0 and not all 0.")

    @property
    def num_classes(self) -> int:
        """How many classes there are. Raises ValueError while that is not known."""
        if self._said is None:
            raise ValueError("The number of classes is not known: say Classes(num_classes).")
        return self._said

    @property
    def given(self) -> bool:
        """Whether there is a condition at all."""
        return self.num_classes > 0

    @property
    def period(self) -> int:
        """Images i and i + period have the same condition; 1 where conditions are drawn at random or there are none."""
        return self.num_classes or 1 if self.frequencies is None else 1

    def network(self) -> dict[str, int]:
        """The arguments about the condition with which a network is built."""
        return {"num_classes": self.num_classes}

    def around(self, network: nn.Module) -> nn.Module:
        """The network, which has a table of the classes of its own."""
        return network

    def labels(self, data: Any) -> Tensor | None:
        """What `of` is given of a data set's items: their labels, int64 [n]; None where there are none."""
        return None if data.labels is None else torch.from_numpy(data.labels)

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of a batch of training images with these labels: the labels."""
        return labels if self.num_classes else None

    def names(self, indices: Tensor) -> list[str] | None:
        """What images are asked for, in words: None, since classes have numbers alone."""
        return None

    def null(self, cond: Tensor) -> Tensor:
        """No class, -1, in cond's shape. Raises UserError where the model has not learned it."""
        if not self.null_class:
            raise UserError(
                "This model has not learned to go without its class, so none can be left out: say guidance.scale=1 or guidance.negative=3."
            )
        return torch.full_like(cond, -1)

    def ask(self, indices: Tensor) -> Tensor | None:
        """The classes of images number `indices` [b]: int64 [b]; None where there are no classes."""
        if not self.num_classes:
            return None
        if self.frequencies is None:
            return indices % self.num_classes
        if isinstance(self.frequencies, str):
            raise ValueError("The data's frequencies are not known: `facts` counts them, or give a list of weights.")
        share = torch.tensor(self.frequencies, dtype=torch.float64).cumsum(0)
        u = torch.tensor([mixed(1, int(i)) / 2**63 for i in indices], dtype=torch.float64)
        return torch.searchsorted(share, u * share[-1], right=True).clamp(max=self.num_classes - 1)

    def parse(self, words: Any, key: str = "the condition") -> Tensor:
        """The classes that a number, or a list of numbers, names: int64 [k]. Raises UserError for what is not a class of the model."""
        if not self.num_classes:
            return Unconditional().parse(words, key)
        listed = words if isinstance(words, list | tuple) else [words]
        if not listed or not all(str(word).isdecimal() and int(word) < self.num_classes for word in listed):
            raise UserError(f"{key}={words} is not among the model's classes, which are the numbers 0 to {self.num_classes - 1}.")
        return torch.tensor([int(word) for word in listed], dtype=torch.int64)

    def describe(self) -> dict[str, Any] | None:
        """What the passport says of how images got their conditions; None for the classes in turn."""
        random = self.given and self.frequencies is not None
        return {"name": "Classes", "frequencies": list(self.frequencies or ())} if random else None

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set (`diffusion.data.ImageSet`), as plain data.

        Raises UserError if its number of classes is not the configured one."""
        if self._said not in (None, data.num_classes):
            raise UserError(f"conditions.num_classes={self._said}, and {data.name} has {data.num_classes} classes; leave it out.")
        found: dict[str, Any] = {"num_classes": data.num_classes}
        if self.frequencies == "data" and data.num_classes:
            counts = torch.tensor(data.labels).bincount(minlength=data.num_classes).double()
            found["frequencies"] = (counts / counts.sum()).tolist()
        return found
