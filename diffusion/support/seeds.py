"""SplitMix64 (Steele et al. 2014, fig. 17): pseudo-random words that are the same bits on every device."""

from collections.abc import Callable
from operator import rshift
from typing import Any

import torch
from torch import Tensor

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(seed: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The first n outputs of SplitMix64 seeded with `seed`, as int64 [n].

    Integer arithmetic only, so every device gives the same bits, which torch's generators do not. Outputs of one seed
    are distinct, the output function being a bijection of 64-bit words.
    """
    z = torch.arange(1, n + 1, dtype=torch.int64, device=device) * _signed(GAMMA) + _signed(seed)
    return _output(z, _signed, _shift)


def mixed(*numbers: int) -> int:
    """One 63-bit seed made of several numbers; a change of any of them gives an unrelated seed."""
    state = 0
    for number in numbers:
        state = _output(_word((state ^ number) + GAMMA), _word, rshift)
    return state >> 1


def _output(z: Any, wrapped: Callable[[Any], Any], shift: Callable[[Any, int], Any]) -> Any:
    """The output function, of Python's integers or of int64 tensors, which wrap by themselves."""
    z = wrapped((z ^ shift(z, 30)) * wrapped(FIRST))
    z = wrapped((z ^ shift(z, 27)) * wrapped(SECOND))
    return z ^ shift(z, 31)


def _word(z: int) -> int:
    """The lowest 64 bits."""
    return z & 0xFFFFFFFFFFFFFFFF


def _signed(z: Any) -> Any:
    """The int64 with the same 64 bits; a tensor of them as it is."""
    return z if isinstance(z, Tensor) else (z + 2**63) % 2**64 - 2**63


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right filling with zeros; torch's shift of an int64 fills with the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
