"""Where the noise of images comes from: a seed for each, or what lies between two."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.support.seeds import mixed, normals


class Between(NamedTuple):
    """In the place of a seed, what lies between two: its noise is the `slerp` of theirs."""

    first: int
    second: int
    weight: float


Seed = int | Between


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """Spherical interpolation of two noises of the same shape (DDIM eq. 67), theta the angle between them:
    sin((1 - w) theta)/sin(theta) a + sin(w theta)/sin(theta) b. `weight` is a number or broadcasts."""
    theta = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1).acos()
    arc = (((1 - weight) * theta).sin() * a + (weight * theta).sin() * b) / theta.sin()
    line = torch.lerp(a, b, weight.to(a) if isinstance(weight, Tensor) else weight)
    return torch.where(theta.sin() < 1e-4, line, arc)  # of a noise and itself, or its opposite, there is no arc


def require_seed(seed: Seed) -> None:
    """Raises ValueError for a seed outside 0 .. 2^32 - 1: the CPU's generator reads 32 bits, so that 2^32 would be 0 again."""
    for number in seed[:2] if isinstance(seed, Between) else [seed]:
        if not 0 <= number < 2**32:
            raise ValueError("An image's seed is outside 0 .. 4294967295, where two seeds would make one image; use a smaller seed.")


def drawing(seed: Seed) -> Callable[[Tensor], Tensor]:
    """What fills an image's tensor on the CPU with the noise of its seed, other noise each time; in place, and returned."""
    if isinstance(seed, Between):
        first, second = drawing(seed.first), drawing(seed.second)
        return lambda z: z.copy_(slerp(first(torch.empty_like(z)), second(torch.empty_like(z)), seed.weight))
    generator = torch.Generator().manual_seed(int(seed))
    return lambda z: z.normal_(generator=generator)


class Counted:
    """The noise of all seeds of a batch at once, on a device that takes as long to begin a draw as to make it: `normals`."""

    def __init__(self, seeds: Sequence[Seed], device: torch.device | str) -> None:
        ends = [seed[:2] if isinstance(seed, Between) else (seed, seed) for seed in seeds]
        streams = torch.tensor([[mixed(first) for first, _ in ends], [mixed(second) for _, second in ends]])
        self.first, self.second = streams.to(device, non_blocking=True)
        self.between = [(row, seed.weight) for row, seed in enumerate(seeds) if isinstance(seed, Between)]
        self.drawn = 0  # words of each stream

    def __call__(self, x: Tensor) -> Tensor:
        n, dtype = x[0].numel(), torch.promote_types(x.dtype, torch.float32)
        z = normals(self.first, n, self.drawn, dtype)
        for row, weight in self.between:
            z[row] = slerp(z[row], normals(self.second[row : row + 1], n, self.drawn, dtype)[0], weight)
        self.drawn += (n + 1) // 2
        return z.reshape(x.shape).to(x.dtype)


def counts(device: torch.device) -> bool:
    """Whether the noise of images on this device is `Counted`."""
    return device.type != "cpu"


class SeededNoise:
    """Standard normal noise like torch.randn_like, where row i is drawn from seeds[i] alone; other noise each time. A seed's noise on the
    CPU, torch's generator's, is not that on a GPU, which is `Counted`.

    Raises ValueError as `require_seed` does."""

    def __init__(self, seeds: Sequence[Seed], device: torch.device | str) -> None:
        for seed in seeds:
            require_seed(seed)
        counted = counts(torch.device(device))
        self.rows = [] if counted else [drawing(seed) for seed in seeds]
        self.counted = Counted(seeds, device) if counted and len(seeds) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.counted is not None:
            return self.counted(x)
        z = torch.empty_like(x, memory_format=torch.contiguous_format)
        for row, draw in zip(z, self.rows, strict=True):
            draw(row)
        return z
