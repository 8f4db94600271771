"""The contract of noise schedules, and the base of those that leave the signal as it is (alpha = 1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffusion.support.ranges import Checked

CONTINUOUS_STEPS = 1000  # a schedule in continuous time is cut into as many steps as DDPM has, where it must be


class At(NamedTuple):
    """A single time in the place of its tensor."""

    value: float
    dtype: torch.dtype


def remembered(of_times: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of times, a schedule and plain values: one tensor, or a tuple. Where all times are single, on the host and nobody's
    variable it keeps its answers, and gives copies: a sampler asks of the same times in each batch, and an answer takes longer than the
    step made with it."""

    @lru_cache(maxsize=2**14)
    def kept(*args: Any) -> Any:
        if not all(map(immutable, args)):
            return None
        with torch.inference_mode(False), torch.enable_grad():
            answer = of_times(*(torch.tensor(arg.value, dtype=arg.dtype, device="cpu") if isinstance(arg, At) else arg for arg in args))
        return answer if all(map(underived, answer if isinstance(answer, tuple) else (answer,))) else None  # a schedule that learns

    @wraps(of_times)
    def found(*args: Any) -> Any:
        if not all(map(unchanging, args)):
            return of_times(*args)
        try:
            answer = kept(*[At(arg.item(), arg.dtype) if type(arg) is Tensor else arg for arg in args])
        except TypeError:  # a list in a schedule of a user's has no hash
            answer = None
        if answer is None:
            return of_times(*args)
        return tuple(part.clone() for part in answer) if isinstance(answer, tuple) else answer.clone()

    return found


def unchanging(arg: Any) -> bool:
    """Whether an argument is ever after what it is now: a plain value, a frozen dataclass such as this package's schedules are, or a
    single `underived` time on the host."""
    if isinstance(arg, Tensor):
        return arg.is_cpu and arg.ndim == 0 and underived(arg)
    return frozen(type(arg)) or isinstance(arg, (int, float, str)) or arg is None


def immutable(arg: Any) -> bool:
    """Whether an argument holds nothing that may be another while it looks the same: tensors, arrays, networks."""
    if is_dataclass(arg):
        return all(immutable(getattr(arg, part.name)) for part in fields(arg))
    if isinstance(arg, tuple):
        return all(map(immutable, arg))
    return arg is None or isinstance(arg, (int, float, str, torch.dtype))


def frozen(kind: type) -> bool:
    """Whether a class is itself a frozen dataclass."""
    return getattr(kind.__dict__.get("__dataclass_params__"), "frozen", False)


def underived(x: Tensor) -> bool:
    """Whether nothing is derived by a tensor or mapped over it, by gradients, dual numbers or torch.func, and it has numbers."""
    if type(x) is not Tensor or x.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(x).tangent is None


class Schedule(Checked, ABC):
    """The contract. A subclass gives `log_snr` and `time`; one that is not variance preserving also gives `native`."""

    @property
    def num_timesteps(self) -> int | None:
        """T, the number of time steps at which a discrete schedule is known; None in continuous time."""
        return None

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = 2 log(alpha_t / sigma_t): +inf at t = 0, decreasing."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; a log-SNR beyond the schedule's ends maps to the nearer end."""

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR. Variance preserving: alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)."""
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def label(self, t: Tensor) -> Tensor:
        """The number by which the network is told the time; in continuous time, 1000 t."""
        return CONTINUOUS_STEPS * t

    def labelled(self, label: Tensor) -> Tensor:
        """The time that a label stands for: the inverse of `label`, float64."""
        return label.double() / CONTINUOUS_STEPS

    @remembered
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each of t's shape and dtype."""
        alpha, sigma = self.native(self.log_snr(t.double()))
        return alpha.to(t.dtype), sigma.to(t.dtype)

    @property
    def reaches_noise(self) -> bool:
        """Whether alpha(1) = 0, so that x_1 holds nothing of x_0 (flow matching, zero-terminal-SNR)."""
        return self(torch.ones((), dtype=torch.float64))[0].item() == 0.0


class Exploding(Schedule):
    """alpha = 1 throughout: sigma is the noise-to-signal ratio itself."""

    def native(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr), (-log_snr / 2).exp()


def time_steps(schedule: Schedule) -> int:
    """T, the steps over which a bound or an objective is a sum. Raises ValueError in continuous time, which has none."""
    if schedule.num_timesteps is None:
        raise ValueError(
            f"A sum over time steps needs a schedule that has them, and {type(schedule).__name__} has none; "
            "use a discrete schedule such as schedule=cosine."
        )
    return schedule.num_timesteps


def lerp(start: float, end: float, weight: Tensor) -> Tensor:
    """start + weight (end - start), exact at both ends, on the device of `weight`.

    torch.lerp rounds alike, but of two CPU scalars and a CUDA tensor it refuses."""
    return torch.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))
