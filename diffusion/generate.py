"""The one place where images are made. Each image has a seed of its own: the same seed gives the same image (to the rounding of the
network's arithmetic) whatever the batch size, the number of processes or the order, and torch's own random state is left alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from torch import Tensor

from diffusion.codecs import Pixels
from diffusion.denoiser import Estimate
from diffusion.samplers import State


class SeededNoise:
    """Standard normal noise like torch.randn_like, where row i comes from a generator seeded with seeds[i].

    Raises ValueError for a seed outside 0 .. 2^32 - 1: the CPU's generator reads 32 bits, so that 2^32 would be 0 again."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        if not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError("An image's seed is outside 0 .. 4294967295, where two seeds would make one image; use a smaller seed.")
        self.generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        z = torch.empty_like(x, memory_format=torch.contiguous_format)
        for row, generator in zip(z, self.generators, strict=True):
            row.normal_(generator=generator)
        return z


class Conditioned:
    """A denoiser with its condition filled in: what a sampler calls. It counts its calls (`nfe`)."""

    def __init__(self, denoiser: Callable, cond: Tensor | None = None) -> None:
        self.denoiser, self.cond, self.schedule, self.nfe = denoiser, cond, denoiser.schedule, 0
        self.device = getattr(denoiser, "device", torch.device("cpu"))

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        self.nfe += 1
        return self.denoiser(x, t, self.cond if cond is None else cond)


@torch.no_grad()
def trajectories(
    denoiser: Callable,
    sampler: Callable,
    grid: Callable,
    shape: Sequence[int],
    seeds: Sequence[int],
    cond: Tensor | None = None,
) -> Iterator[State]:
    """Every state of one batch, from x_1 = sigma_1 z at the grid's first time; shape is (c, h, w), cond [n, ...] or None."""
    device = getattr(denoiser, "device", torch.device("cpu"))
    noise, times = SeededNoise(seeds, device), grid(denoiser.schedule)
    x = denoiser.schedule(times[0])[1] * noise(torch.empty(len(seeds), *shape, device=device))
    denoise = Conditioned(denoiser, None if cond is None else cond.to(device))
    yield from sampler(denoise, x, times, noise)


def generate(
    denoiser: Callable,
    sampler: Callable,
    grid: Callable,
    shape: Sequence[int],
    seeds: Sequence[int],
    cond: Tensor | None = None,
    batch_size: int = 64,
    codec: Pixels = Pixels(),  # noqa: B008 (frozen)
) -> Tensor:
    """One uint8 image for each seed: [n, h, w, c] on the CPU; n may be 0, as a rank's share may. shape is (c, h, w) in the model's space;
    cond [n, ...] or None."""
    images = []
    for i in range(0, len(seeds), batch_size):
        chunk = slice(i, i + batch_size)
        for state in trajectories(denoiser, sampler, grid, shape, seeds[chunk], None if cond is None else cond[chunk]):  # noqa: B007
            pass
        images.append(codec.decode(state.x).cpu())
    return torch.cat(images) if images else codec.decode(torch.empty(0, *shape))


@dataclass(frozen=True)
class Recipe:
    """All that it takes to make images but the seeds: a (guided) denoiser, a sampler, a grid, and the model's space.

    Raises ValueError at once if the grid does not fit the denoiser's schedule."""

    denoiser: Callable
    sampler: Callable
    grid: Callable
    shape: tuple[int, int, int]
    codec: Pixels = field(default_factory=Pixels)
    batch_size: int = 64
    calls: list[int] = field(default_factory=list, repr=False)  # of the denoiser, in a batch of the last run

    def __post_init__(self) -> None:
        self.grid(self.denoiser.schedule)

    def __call__(self, seeds: Sequence[int], cond: Tensor | None = None) -> Tensor:
        """uint8 images [n, h, w, c], one for each seed."""
        counted = Conditioned(self.denoiser)
        images = generate(counted, self.sampler, self.grid, self.shape, seeds, cond, self.batch_size, self.codec)
        if counted.nfe:
            self.calls[:] = [round(counted.nfe / -(-len(seeds) // self.batch_size))]
        return images

    def describe(self) -> dict:
        """Sampler, grid, guidance and the calls of the denoiser that an image of the last run took, as plain data for a passport."""
        return {
            "sampler": describe(self.sampler) | {"grid": describe(self.grid)},
            "nfe": self.calls[0] if self.calls else None,
            "guidance": describe(self.denoiser) if is_dataclass(self.denoiser) else None,
        }


def describe(thing: object) -> dict:
    """A frozen dataclass as plain data: its name and fields, nested ones too; what is not plain becomes the name of its type."""
    plain = {}
    for f in fields(thing):
        value = getattr(thing, f.name)
        known = is_dataclass(value) or isinstance(value, bool | int | float | str | None)
        plain[f.name] = describe(value) if is_dataclass(value) else value if known else type(value).__name__
    return {"name": type(thing).__name__} | plain
