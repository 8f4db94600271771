"""How t is drawn in training: `times(n, schedule, device) -> Draw(t, weight)`; the weight keeps the loss an unbiased mean over t.

Where the distribution of t is part of an objective's definition (log-normal, logit-normal, asymmetric) the weight is 1."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Few, Finite, Positive, Share, require
from diffusion.support.ranks import gather_even


class Draw(NamedTuple):
    """t [n] float64 in (0, 1] and the importance weight 1 / (T p(t)) [n] of each sample's loss."""

    t: Tensor
    weight: Tensor


class Times(ABC):
    """The contract. `even` says that t is uniform, and `needs_steps` that the schedule must be discrete."""

    even: ClassVar[bool] = False
    needs_steps: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        """n draws of t."""

    def observe(self, t: Tensor, loss: Tensor) -> None:  # noqa: B027 (to do nothing is what most do)
        """Receives each sample's loss, before its weight, at its t: [n], or [batches, n] of all batches of an optimizer step, of this rank.

        Called once a step, on all ranks; most distributions ignore it."""


def _drawn(schedule: Schedule, u: Tensor) -> Draw:
    """Maps u in [0, 1) to t. In continuous time t = 1 - u, which is never 0; on a discrete schedule t is the first knot at or above 1 - u,
    so that a uniform u makes all knots equally likely."""
    total = schedule.num_timesteps
    t = 1 - u if total is None else ((1 - u) * total).ceil().clamp(1, total) / total
    return Draw(t, torch.ones(len(u), device=u.device))


def evenly(n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Tensor:
    """n times [n] that cover (0, 1] evenly, from 1 down, always the same."""
    return _drawn(schedule, (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n).t


def _rand(n: int, device: torch.device | str) -> Tensor:
    return torch.rand(n, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Uniform(Times):
    """Every knot of a discrete schedule is equally likely (DDPM alg. 1); in continuous time t is uniform on (0, 1]."""

    even: ClassVar[bool] = True

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        total = schedule.num_timesteps
        if total is None:
            return _drawn(schedule, _rand(n, device))
        t = torch.randint(1, total + 1, (n,), device=device).double() / total
        return Draw(t, torch.ones(n, device=device))


@dataclass(frozen=True)
class Stratified(Times):
    """u_i = (u + i)/n mod 1 with one uniform u: each t is uniform, and the batch covers (0, 1] evenly (VDM 2107.00630, app. I.1)."""

    even: ClassVar[bool] = True

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        return _drawn(schedule, (_rand(1, device) + torch.arange(n, dtype=torch.float64, device=device) / n) % 1)


@dataclass(frozen=True)
class Antithetic(Times):
    """Uniform in pairs u, 1 - u (the DDIM repository's): the pair's noise levels are never both high or both low."""

    even: ClassVar[bool] = True

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        u = _rand((n + 1) // 2, device)
        mirrored = (1 - u).clamp(max=1 - 2**-53)  # 1 would be t = 0
        return _drawn(schedule, torch.cat([u, mirrored])[:n])


@dataclass(frozen=True)
class LogNormal(Checked, Times):
    """log(sigma/alpha) ~ N(mean, std^2) (EDM table 1); levels beyond the schedule's ends count as the nearer end, and on a discrete
    schedule the knot above is taken. It is EDM's loss that is a mean over this distribution: the weight is 1."""

    mean: Finite = -1.2
    std: Positive = 1.2

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        log_sigma = self.mean + self.std * torch.randn(n, dtype=torch.float64, device=device)
        return _drawn(schedule, (1 - schedule.time(-2 * log_sigma)).clamp(0, 1 - 2**-53))


@dataclass(frozen=True)
class LogitNormal(Checked, Times):
    """log(t / (1 - t)) ~ N(mean, std^2) (SD3 2403.03206, eq. 19), before the schedule's shift: the middle of the path, where the velocity
    is hardest to predict. The weight is 1."""

    mean: Finite = 0.0
    std: Positive = 1.0

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        logit = self.mean + self.std * torch.randn(n, dtype=torch.float64, device=device)
        return _drawn(schedule, (-logit).sigmoid().clamp(0, 1 - 2**-53))


@dataclass(frozen=True)
class Asymmetric(Checked, Times):
    """Each t up to `threshold` is `ratio` times as likely as each after it, where x_t is hardly more than noise and little is left to learn
    (SpeeD 2405.17403, asymmetric sampling: p(t) ~ k for t <= tau, 1 for t > tau). The weight is 1: what is left out shall not count."""

    threshold: Share = 0.7
    ratio: Positive = 5.0

    def __call__(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        tau, k = self.threshold, self.ratio
        u = (1 - _rand(n, device)) * (k * tau + 1 - tau)  # so long as all t together, of which those up to tau are k times as dense
        t = torch.where(u <= k * tau, u / k, u - k * tau + tau)
        return _drawn(schedule, (1 - t).clamp(0, 1 - 2**-53))


class Importance(nn.Module, Times):
    """p(t) ~ sqrt(E[L_t^2]) over the last `history` losses of each knot, for a bound whose terms differ much (IDDPM sec. 3.3, eq. 18).

    Uniform until every knot has had `history` draws; after that mixed with `uniform` of the uniform distribution, as in the paper's
    repository, so that no knot is forgotten. The weight 1/(T p) keeps the loss unbiased. The history is over all ranks' draws, the same
    on each, and is kept in checkpoints. It lives in buffers and never waits for the device.

    Raises ValueError if `num_timesteps` is None, as it is in continuous time, and if the schedule has another number of knots."""

    needs_steps: ClassVar[bool] = True

    losses: Tensor  # [T, history]
    counts: Tensor  # [T], the draws so far

    def __init__(self, num_timesteps: Few | None, history: Few = 10, uniform: Share = 0.001) -> None:
        super().__init__()
        require(self, locals())
        if num_timesteps is None:
            raise ValueError(
                "times=importance learns how often to draw each step of a discrete schedule, and this schedule is in continuous time; "
                "use a discrete one such as schedule=cosine, or times=uniform."
            )
        self.num_timesteps, self.uniform = num_timesteps, uniform
        self.register_buffer("losses", torch.zeros(num_timesteps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_timesteps, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """p(t) of each knot, [T]."""
        ready = (self.counts >= self.losses.shape[1]).all()
        rough = torch.where(ready, self.losses.double().square().mean(1).sqrt(), 1.0)
        p = rough / rough.sum().clamp(min=1e-300)
        return (1 - self.uniform) * p + self.uniform / self.num_timesteps

    def forward(self, n: int, schedule: Schedule, device: torch.device | str = "cpu") -> Draw:
        if schedule.num_timesteps != self.num_timesteps:
            raise ValueError(
                f"times=importance has {self.num_timesteps} steps and {type(schedule).__name__} has not; set times.num_timesteps to the "
                "steps of a discrete schedule such as cosine, or use times=uniform."
            )
        p = self.probabilities().to(device)
        index = torch.multinomial(p, n, replacement=True)
        return Draw((index + 1).double() / self.num_timesteps, (1 / (self.num_timesteps * p[index])).float())

    @torch.no_grad()
    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Keep each knot's latest losses, those of all ranks in the order of batch, rank and sample."""
        index, loss = map(_of_all_ranks, ((t * self.num_timesteps).round().long() - 1, loss.double()))
        rows, size = self.losses.shape
        order = index.argsort(stable=True)
        index, loss = index[order], loss[order]
        nth = torch.arange(len(index), device=index.device) - torch.searchsorted(index, index)  # among the draws of this knot
        drawn = torch.zeros(rows, dtype=torch.long, device=index.device).index_add_(0, index, torch.ones_like(index))
        kept = nth >= drawn[index] - size  # of more draws than there is room for, the last
        slot = (self.counts[index] + nth) % size
        spare = torch.cat([self.losses, self.losses.new_zeros(1, size)])  # a row for what is not kept
        spare[torch.where(kept, index, rows), slot] = loss.to(spare.dtype)
        self.losses.copy_(spare[:rows])
        self.counts += drawn


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Every rank's [n] or [batches, n] in the order of batch, rank and sample, [all]."""
    return gather_even(rows.movedim(-1, 0)).movedim(0, -1).flatten()
