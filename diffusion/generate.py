"""The one place where images are made. Each image has a seed of its own: the same seed gives the same image (to the rounding of the
network's arithmetic) whatever the batch size, the number of processes or the order, and torch's own random state is left alone."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property, partial
from math import isfinite
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from diffusion.codecs import Pixels
from diffusion.conditions import Unconditional
from diffusion.denoiser import Denoiser, Estimate
from diffusion.noise import Seed, SeededNoise
from diffusion.samplers import State, last
from diffusion.support.devices import multiplying_in
from diffusion.support.graphs import Graphs
from diffusion.support.hashes import tensors_hash
from diffusion.typing import Codec, Conditions, Denoise, Rows, device_of

log = logging.getLogger(__name__)
# Precisions that the weights are kept in, too
HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


class Asked:
    """A denoiser with its condition filled in: what a sampler calls. It counts its calls (`nfe`) and the images in them (`images`)."""

    def __init__(self, denoiser: Denoise, cond: Tensor | None = None) -> None:
        self.denoiser, self.cond, self.schedule = denoiser, cond, denoiser.schedule
        self.nfe, self.images, self.device = 0, 0, device_of(denoiser)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        self.nfe, self.images = self.nfe + 1, self.images + len(x)
        return self.denoiser(x, t, self.cond if cond is None else cond)

    def among(self, rows: Tensor) -> Callable[[Tensor, Tensor], Estimate]:
        """The same for these rows [k] of the batch alone, with their conditions."""
        return self if self.cond is None else partial(self, cond=self.cond[rows])


@torch.no_grad()
def trajectories(
    denoiser: Denoise,
    sampler: Callable,
    grid: Callable,
    shape: Sequence[int],
    seeds: Sequence[Seed],
    cond: Tensor | None = None,
) -> Iterator[State]:
    """Every state of one batch, from x_1 = sigma_1 z at the grid's first time; shape is (c, h, w), cond [n, ...] or None."""
    device = device_of(denoiser)
    noise, times = SeededNoise(seeds, device), grid(denoiser.schedule)
    x = denoiser.schedule(times[0])[1] * noise(torch.empty(len(seeds), *shape, device=device))
    denoise = Asked(denoiser, None if cond is None else cond.to(device, non_blocking=True))
    yield from sampler(denoise, x, times, noise)


def walks(
    denoiser: Denoise,
    sampler: Callable,
    grid: Callable,
    shape: Sequence[int],
    seeds: Sequence[Seed],
    cond: Rows | None = None,
    batch_size: int = 64,
) -> Iterator[Iterator[State]]:
    """The `trajectories` of one batch of the seeds after the other."""
    for i in range(0, len(seeds), batch_size):
        chunk = slice(i, i + batch_size)
        yield trajectories(denoiser, sampler, grid, shape, seeds[chunk], None if cond is None else cond[chunk])


def generate(
    denoiser: Denoise,
    sampler: Callable,
    grid: Callable,
    shape: Sequence[int],
    seeds: Sequence[Seed],
    cond: Rows | None = None,
    batch_size: int = 64,
    codec: Codec = Pixels(),  # noqa: B008 (frozen)
) -> Tensor:
    """One image for each seed, as the codec decodes it (uint8 [n, h, w, c] by default), on the CPU; n may be 0, as a rank's share may.
    shape is (c, h, w) in the model's space; cond [n, ...] or None."""
    batches = walks(denoiser, sampler, grid, shape, seeds, cond, batch_size)
    images = [finished(codec, last(states)) for states in batches]
    return torch.cat(images) if images else codec.decode(torch.empty(0, *shape))


def finished(codec: Codec, state: State) -> Tensor:
    """A walk's end as the codec decodes it, on the CPU. A warning says, once, if it held what is no number, which a picture of 8 bits would
    hide; that is looked at when the images have been waited for."""
    images = codec.decode(state.x).cpu()
    if not state.x.isfinite().all():
        warn_of_no_numbers()
    return images


@cache
def warn_of_no_numbers() -> None:
    """Said once by a process, however many batches it is true of."""
    log.warning("Some images are of numbers that are none (NaN or infinity): the weights are damaged, or precision is too low.")


def autocast_to(kind: torch.dtype) -> Callable[[Denoise], AbstractContextManager[None]]:
    """Autocast to this type, on the denoiser's device."""
    return lambda denoiser: torch.autocast(device_of(denoiser).type, dtype=kind)


@contextmanager
def doubled(denoiser: Denoise) -> Iterator[None]:
    """Within the context the denoiser's networks compute in float64; float32 goes there and back without a change."""
    models = [(model, next(model.parameters(), torch.empty(0)).dtype) for model in modules(denoiser)]
    try:
        for model, _ in models:
            model.double()
        yield
    finally:
        for model, kind in models:
            model.to(kind)


def modules(denoiser: Any) -> list[torch.nn.Module]:
    """The torch modules of a denoiser inside its guidance, second models too."""
    if isinstance(denoiser, torch.nn.Module):
        return [denoiser]
    parts = [getattr(denoiser, f.name) for f in fields(denoiser)] if is_dataclass(denoiser) else []
    return [module for part in parts for module in modules(part)]


PRECISIONS: dict[str, Callable[[Denoise], AbstractContextManager[Any]]] = {
    "32-true": nullcontext,
    "64-true": doubled,
    "bf16-mixed": autocast_to(torch.bfloat16),
    "16-mixed": autocast_to(torch.float16),
    **{name: autocast_to(kind) for name, kind in HALVES.items()},
}
"""What the network computes in, as a context for the denoiser."""


class Made(NamedTuple):
    """What a recipe made: uint8 images [n, h, w, c], or whatever its codec decodes to, and the number of denoiser calls for each (of an
    adaptive sampler, whose images differ in it, the rounded mean)."""

    images: Tensor
    nfe: int


@dataclass(frozen=True)
class Recipe:
    """Everything that makes images, except their seeds: a (guided) denoiser, a sampler, a grid, the model's codec, and its conditions.

    `precision` is what the network computes in: 32-true, or bf16-mixed or 16-mixed for autocast, as in training, or bf16-true or 16-true
    for autocast with weights of that type (see `Model.to`); or 64-true, whose rounding is too small to move an adaptive sampler's steps.
    `matmul_precision` is torch's for float32 (high: TF32 where there is any). With `graphs` the networks' calls are CUDA graphs
    (`diffusion.support.graphs`), which a GPU gains by where it would wait for Python: small batches and small networks.
    `model` is the denoiser without guidance, where that is known.

    Raises ValueError at once for another precision, for weights of another type than it says, for graphs without a GPU, and if the grid
    does not fit the denoiser's schedule."""

    denoiser: Denoise
    sampler: Callable
    grid: Callable
    shape: tuple[int, ...]
    codec: Codec = field(default_factory=Pixels)
    conditions: Conditions = field(default_factory=Unconditional)
    batch_size: int = 64
    precision: str = "32-true"
    matmul_precision: str = "high"
    graphs: bool = False
    model: Denoise | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"sample_batch_size={self.batch_size} is the number of images at a time, at least 1.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} is not one that images are made in: use {', '.join(PRECISIONS)}, or auto.")
        weights = {weight.dtype for weight in getattr(self.model, "parameters", tuple)()} & set(HALVES.values())
        if self.model is not None and weights != {HALVES[name] for name in {self.precision} & HALVES.keys()}:
            raise ValueError(f"precision={self.precision} needs weights of that type: load the model again, and say to(device, precision).")
        if self.graphs and device_of(self.denoiser).type != "cuda":
            remedy = ", or say device=cuda" if torch.cuda.is_available() else ""
            raise ValueError(f"graphs=true records what a GPU is told, and the network is not on one: leave it out{remedy}.")
        if self.graphs and not self.recorded.networks:
            raise ValueError(f"graphs=true records a denoiser's network, and {type(self.denoiser).__name__} has none: leave it out.")
        self.grid(self.denoiser.schedule)

    def __call__(self, seeds: Sequence[Seed], cond: Rows | None = None) -> Made:
        """An image for each seed, with these conditions, such as `conditions.ask(torch.arange(n))`; None asks for none."""
        asked = Asked(self.denoiser)
        with self.computing():
            images = generate(asked, self.sampler, self.grid, self.shape, seeds, cond, self.batch_size, self.codec)
        return Made(images, round(asked.images / max(1, len(seeds))))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the context the network computes in the recipe's precision."""
        played = self.recorded.played if self.graphs else nullcontext
        with multiplying_in(self.matmul_precision), PRECISIONS[self.precision](self.denoiser), played():
            yield

    @cached_property
    def recorded(self) -> Graphs:
        """What is recorded of the networks with `graphs`."""
        return Graphs([cast(torch.nn.Module, model.network) for model in modules(self.denoiser) if isinstance(model, Denoiser)])

    def describe(self) -> dict[str, Any]:
        """Sampler, grid, guidance, conditions, an autoencoder, precision and kind of device as plain data for a passport."""
        plain = self.denoiser is self.model or (self.model is None and not is_dataclass(self.denoiser))
        usual = self.matmul_precision == "high"
        trained = {"codec": self.codec.describe()} if hasattr(self.codec, "describe") else {}
        return {
            "sampler": described(self.sampler) | {"grid": described(self.grid)},
            "guidance": None if plain else described(self.denoiser),
            "conditions": self.conditions.describe(),
            "precision": self.precision if usual else f"{self.precision}, matmul {self.matmul_precision}",
            "device": device_of(self.denoiser).type,
            **trained,
        }


def described(thing: Any) -> dict[str, Any]:
    """An object as plain data: its name and, of a dataclass, its fields, nested ones too. A model is given by its name and, if it is a
    second one, the hash of its weights; a tensor by its values, or their hash; anything else that is not plain by the name of its type."""
    if not is_dataclass(thing):
        return {"name": getattr(thing, "__qualname__", type(thing).__name__)}
    plain = {f.name: _plain(getattr(thing, f.name)) for f in fields(thing) if f.repr}
    return {"name": type(thing).__name__} | plain


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return described(value)
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Tensor):  # a condition, or a picture
        return value.tolist() if value.numel() <= 64 else {"shape": list(value.shape), "hash": tensors_hash({"": value})}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    weights = getattr(value, "weights_hash", None)
    return {"name": type(value).__name__, "weights": weights} if weights else type(value).__name__
