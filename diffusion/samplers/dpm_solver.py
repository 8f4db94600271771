"""DPM-Solver and DPM-Solver++, singlestep: groups of grid steps, each group one step of its length's order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import Known, constant, curved, exponential, hold_eps, log_ratio, weighted_sum, weights
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Order
from diffusion.typing import Denoise, Noise


@dataclass(frozen=True)
class DPMSolver(Checked):
    """DPM-Solver-1, 2, 3 (2206.00927, alg. 1 and 2): a step of order k goes over k steps of the grid with one call at each.

    The inner times are the grid's, so that a grid of n steps costs n calls at any order; on a grid uniform in lambda they are the
    paper's r_1 = 1/2, and 1/3, 2/3. `orders` is the bookkeeping of "DPM-Solver-fast" (app. D.3): as many steps of full
    order as fit, then what is left, and first order to sigma = 0 (and from alpha = 0, or down a cliff as `curved` says).

    `solver` "midpoint" closes with the paper's formulas, whose third order needs inner times near the thirds, as they are on any smooth
    grid; "heun" (diffusers' name) with the polynomial through all of a step's estimates, which needs no such times. Raises ValueError for
    another word or order."""

    order: Order = 2
    solver: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in ("midpoint", "heun"):
            raise ValueError(f"sampler.solver={self.solver} is not one of midpoint, heun.")

    def orders(self, steps: int) -> list[int]:
        """The order of each step, which together go over `steps` steps of the grid; the last is 1."""
        full, rest = divmod(steps - 1, self.order)
        return [self.order] * full + [rest] * (rest > 0) + [1]

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        schedule, i = denoise.schedule, 0
        from_noise = len(times) > 2 and not curved(times[0], times[1], schedule)
        for order in [1] * from_noise + self.orders(len(times) - 1 - from_noise):
            start, t, known = x, times[i], []
            for stage in range(1, order + 1):
                known.append((times[i], denoise(x, times[i])))
                i += 1
                x = step(start, self.x0(known, times[i], schedule, stage == order), t, times[i], schedule)
                yield State(x, known[-1][1].x0, times[i])

    def average(self, nodes: list[Tensor], end: Tensor, closing: bool) -> list[float]:
        """The weights of a step's estimates, made at `nodes` in the integration variable, in the move from nodes[0] to `end`."""
        if self.solver == "heun" or not closing:
            return weights(nodes, end, exponential)
        if len(nodes) == 3:
            first, last = weights([nodes[0], nodes[2]], end, exponential)
            return [first, 0.0, last]
        return weights(nodes, end, constant)

    def x0(self, known: Sequence[Known], s: Tensor, schedule: Schedule, closing: bool) -> Tensor:
        """The x_0 of a move from known[0]'s time to s; `closing` if it ends the step."""
        w = self.average([log_ratio(t, schedule) for t, _ in known], log_ratio(s, schedule), closing)
        return hold_eps(weighted_sum(w, [estimate.eps for _, estimate in known]), known[0], schedule)


@dataclass(frozen=True)
class DPMSolverPP(DPMSolver):
    """DPM-Solver++(1), (2S), (3S) (2211.01095, alg. 1): `DPMSolver` with x_0 in the place of eps and lambda in the place of log s."""

    def x0(self, known: Sequence[Known], s: Tensor, schedule: Schedule, closing: bool) -> Tensor:
        w = self.average([-log_ratio(t, schedule) for t, _ in known], -log_ratio(s, schedule), closing)
        return weighted_sum(w, [estimate.x0 for _, estimate in known])
