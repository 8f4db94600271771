"""SplitMix64 (Steele et al. 2014, fig. 17): pseudo-random words that are the same bits on every device."""

from collections.abc import Callable
from math import pi
from operator import rshift
from typing import Any

import torch
from torch import Tensor

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(seed: int | Tensor, n: int, device: torch.device | str = "cpu", after: int = 0) -> Tensor:
    """n outputs of SplitMix64 seeded with `seed`, those that follow the first `after`, as int64 [n]; of seeds [k, 1], [k, n].

    Integer arithmetic only, so every device gives the same bits, which torch's generators do not. Outputs of one seed
    are distinct, the output function being a bijection of 64-bit words.
    """
    z = torch.arange(after + 1, after + n + 1, dtype=torch.int64, device=device) * _signed(GAMMA) + _signed(seed)
    return _output(z, _signed, _shift)


def normals(seeds: Tensor, n: int, after: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers [k, n] of the streams with these seeds, int64 [k], on their device: each 64-bit word, `after` the first so
    many, gives two (Box & Muller 1958). They are the same on every device, to the rounding of its logarithm and cosine."""
    words = splitmix64(seeds[:, None], (n + 1) // 2, seeds.device, after)
    high, low = ((_shift(words, 32) + 1).to(dtype) / 2**32, (words & 0xFFFFFFFF).to(dtype) / 2**32)
    radius, angle = (-2 * high.log()).sqrt(), 2 * pi * low
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n]


def mixed(*numbers: int) -> int:
    """One 63-bit seed made of several numbers; a change of any of them gives an unrelated seed."""
    state = 0
    for number in numbers:
        state = _output(_word((state ^ number) + GAMMA), _word, rshift)
    return state >> 1


def reseed(seed: int) -> None:
    """torch.manual_seed, of the devices in use. Where CUDA is not, torch notes for it in each call from where the call came, which takes
    longer than the step's own random numbers."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


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
