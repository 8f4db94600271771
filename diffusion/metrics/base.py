"""The contract of metrics."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from itertools import count
from typing import Any, ClassVar, Self

import torch
import torchmetrics
from torch import Tensor

from diffusion.conditions import Unconditional
from diffusion.metrics.intervals import GROUPS, Part, jackknife, without_each
from diffusion.metrics.reference import RealImages
from diffusion.support.ranges import Several
from diffusion.support.ranks import gather_dealt
from diffusion.typing import Codec, Conditions, Denoise

Numbers = Tensor | dict[str, Tensor]  # [], float64
UNCONDITIONAL = Unconditional()
NUMBERS = count()


class Metric(torchmetrics.Metric):
    """The contract: a `torchmetrics.Metric` with a reference and a passport. `name` is the key its (first) number is recorded under, n how
    many generated images it wants.

        metric.setup(imageset, device)            # once, on all ranks
        metric.update(images, labels)             # this rank's share, in any chunks: uint8 [b, h, w, c], classes [b] or None
        metric.compute()                          # on all ranks; metric.numbers() by name, as plain numbers
        metric.reset()                            # before the next n images

    Images are dealt to the ranks like cards: image i is on rank i mod world, in order. States are lists of rows, an image each, in
    torchmetrics' sense (`keep`), and are brought together by `gather`. They keep their types whatever the module that they are in is
    cast to, so that what is summed in float64 stays so. The state `apart` is a number of the metric's own: a `MetricCollection` has those
    whose states are equal, as they are before the first image, updated as one."""

    moves: ClassVar[tuple[str, ...]] = ()  # tensors that go where the states go
    full_state_update: bool | None = False
    higher_is_better: bool | None = False
    name: str
    n: Several

    def __init__(self) -> None:
        super().__init__()
        self.without: dict[str, list[float]] = {}
        self.row_kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.add_state("apart", torch.tensor(next(NUMBERS)), dist_reduce_fx="max")

    @abstractmethod
    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        """Move to `device` and take what the metric needs from the real images; all ranks must call it. `conditions` are those of the
        images that will be generated."""

    @abstractmethod
    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add this rank's generated images, uint8 [b, h, w, c] on any device; b may be 0."""

    @abstractmethod
    def compute(self) -> Numbers:
        """The number over all ranks' images, on every rank, or several by name; may be called again. All ranks must call it."""

    @abstractmethod
    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> None:
        """`update`: torchmetrics' number of the batch alone would be one of other than n images."""
        self.update(images, labels)

    def keep(self, state: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> None:
        """Have a state of a row of this shape and type for each image."""
        self.row_kinds[state] = shape, dtype
        self.add_state(state, [], dist_reduce_fx="cat")

    def kept(self, state: str) -> Tensor:
        """The rows [m, *shape] of a state so far, in order: this rank's, and all ranks' within torchmetrics' synchronisation."""
        (shape, dtype), parts = self.row_kinds[state], getattr(self, state)
        return torch.cat([*parts, torch.empty(0, *shape, dtype=dtype, device=parts[0].device if parts else home(self.device, dtype))])

    def gather(self) -> None:
        """Put all ranks' images in the place of this rank's, in their order."""
        for state in self.row_kinds:
            setattr(self, state, [gather_dealt(self.kept(state))])

    def _sync_dist(self, *_: Any, **__: Any) -> None:
        """In the place of torchmetrics' own synchronisation, which fails where a rank has no images, and knows no order of them."""
        self.gather()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Moves the states, and never changes their type."""

        def moved(state: Tensor) -> Tensor:
            return state.to(home(fn(torch.empty(0, device=state.device)).device, state.dtype))

        super()._apply(moved, *args, **kwargs)
        for name in self.moves:
            if isinstance(value := getattr(self, name, None), Tensor):
                setattr(self, name, moved(value))
        return self

    @property
    def update_called(self) -> bool:
        """True: a rank may have no images, and a likelihood has none at all, of which torchmetrics would warn."""
        return True

    def asks(self, conditions: Conditions) -> Conditions:
        """The conditions that its images are asked for by: those of the model's own way, but for a metric with questions of its own."""
        return conditions

    def numbers(self) -> dict[str, float]:
        """The result of `compute` by the names that it is recorded under; the first is `name`."""
        result = self.compute()
        return {key: float(value) for key, value in (result if isinstance(result, dict) else {self.name: result}).items()}

    def require_n(self, count: int) -> None:
        """Raises ValueError unless `count` is n: the name says n."""
        if count != self.n:
            raise ValueError(f"{self.name} is a number of {self.n} images, and {count} were given.")

    def model(self, denoiser: Denoise, codec: Codec, conditions: Conditions = UNCONDITIONAL) -> None:
        """Take the (guided) denoiser that made the images, before `compute`; only a metric of the model itself, such as a likelihood, uses
        it."""
        return None

    def resized(self, n: int) -> Self | None:
        """The same metric of n images, sharing its network; None for one that looks at no images."""
        if self.n == 0:
            return None
        other = copy(self)
        other._defaults = {**self._defaults, "apart": torch.tensor(next(NUMBERS))}
        for state in self.row_kinds:  # a shallow copy's lists are the same, and would be emptied together
            setattr(other, state, [])
        other.name_by(n)
        other.reset()
        return other

    def name_by(self, n: int) -> None:
        """Become a metric of n images, with the name that says so. Raises ValueError for too few of them."""
        raise ValueError(f"{self.name} is a number of {self.n} images and cannot be one of {n}.")

    def picture(self) -> Tensor | None:
        """A picture of the result, uint8 [h, w, 3], after `compute`; None for most metrics."""
        return None

    def jackknifed(self, keys: Sequence[str], statistic: Callable[[list[Part]], Tensor], parts: Sequence[Part]) -> dict[str, Tensor]:
        """The standard error over these groups of images of each number `keys` of `statistic`, by KEY/error. What the numbers are without
        each group is kept for `facts`: two models' differences of those, with the same images' seeds, tell the models apart."""
        values = without_each(statistic, parts)
        self.without = dict(zip([f"{key}/without" for key in keys], values.T.tolist(), strict=True))
        return dict(zip([f"{key}/error" for key in keys], jackknife(values), strict=True))

    def mean_of_images(self, values: Tensor) -> dict[str, Tensor]:
        """The mean of a number [n] of each image, and its standard error."""
        self.jackknifed(
            [self.name], lambda parts: torch.cat(parts).mean()[None], [values[g::GROUPS] for g in range(min(GROUPS, len(values)))]
        )
        return {self.name: values.mean(), f"{self.name}/error": values.std() / len(values) ** 0.5}

    def facts(self) -> dict[str, Any]:
        """Results that are not single numbers, such as lists, as plain data by names that begin with NAME/; after `compute`. Where there
        are groups of images, KEY/without is what the number is without each, but for a part that is the same for all models."""
        return dict(self.without)


def abbreviated(n: int) -> str:
    """Whole thousands as "k": 500, 1k, 1797, 50k."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def home(device: torch.device | str, dtype: torch.dtype = torch.float64) -> torch.device:
    """The device, or the CPU for float64 on one that has none (Apple's GPU)."""
    return torch.device("cpu" if dtype is torch.float64 and torch.device(device).type == "mps" else device)


def on_float64(tensor: Tensor) -> Tensor:
    """In float64, on the same device unless that has none."""
    return tensor.to(home(tensor.device)).double()
