"""Rows many of which are the same, as those of texts are."""

from typing import Any, Self

import torch
from torch import Tensor


class Repeated:
    """Rows [n, ...] of which row i is table[number[i]], of a table [k, ...] and numbers [n]: what is asked for often is held once."""

    def __init__(self, table: Tensor, number: Tensor) -> None:
        self.table, self.number = table, number

    def __getitem__(self, indices: Any, /) -> Tensor:
        return self.table[self.number[indices]]

    def __len__(self) -> int:
        return len(self.number)

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return self.table.nbytes + self.number.nbytes

    def to(self, device: torch.device | str, /) -> Self:
        """The same on this device."""
        return type(self)(self.table.to(device), self.number.to(device))


def numbered_texts(texts: list[str]) -> tuple[list[str], Tensor]:
    """The different ones of n texts, in the order in which they come, and of each text the number of its own among them, int64 [n]."""
    distinct = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(distinct)}
    return distinct, torch.tensor([number[text] for text in texts], dtype=torch.int64)
