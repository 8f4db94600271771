"""Running sums of a training run's losses, kept on the device and read all at once, and whether they are still finite."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from diffusion.support.ranks import rank_and_world, sum_over_ranks

QUARTERS = 4
LATE = 4  # steps after which a value has come from the device, since that cannot be so far behind


class Arriving:
    """A number on its way from the device to the host, which nobody waits for unless it is asked for too soon."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.to("cpu", non_blocking=True)
        self.event = None if value.device.type == "cpu" else torch.Event(value.device)
        if self.event is not None:
            self.event.record()

    def get(self) -> float:
        if self.event is not None:
            self.event.synchronize()
        return self.value.item()


def by_quarter(rows: Tensor, t: Tensor) -> Tensor:
    """The sums [k, 4] of rows [k, b] over the samples whose t [b] is in each quarter of (0, 1]."""
    quarter = (t * QUARTERS).ceil().long().clamp(1, QUARTERS) - 1
    return rows.new_zeros(len(rows), QUARTERS).index_add_(1, quarter, rows)


class Meter:
    """Means since the last reading, over the samples of all ranks: each term of the loss, all and in each quarter of t, and the gradient's
    norm. They end with the last step before the first whose loss is not finite.

    Updating never waits for the device; reading waits once. All ranks, which make as many steps of as many samples, must call each method
    at once, but for `update`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.step: Tensor | None = None  # sums of this rank's batches of the step in progress, of means: losses, by quarters, and 1
        self.sums: Tensor | None = (
            None  # sums of the steps since the last reading, of means: losses, by quarters, the gradient's norm, and 1
        )
        self.bad: Tensor | None = None  # whether a loss was not finite
        self.first_bad: int | None = None  # in which step, as far as has arrived
        self.arriving: deque[tuple[int, Arriving]] = deque()

    @torch.no_grad()
    def update(self, losses: dict[str, Tensor], t: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Add one batch's per-sample losses [b] at times t [b], each of `weight` [b] (1 if None), the importance weights of a t that is not
        drawn uniformly: so the means are those over uniform t. Losses without a time have no quarters."""
        self.names = [f"loss/{name}" if name != "loss" else "loss" for name in losses]
        terms = torch.stack([value.detach().double() for value in losses.values()])
        weighed = terms if weight is None else weight.to(terms) * terms
        quarters = terms.new_zeros(len(terms) + 1, QUARTERS)
        if t is not None:
            counted = torch.ones_like(terms[:1]) if weight is None else weight.to(terms)[None]
            quarters = by_quarter(torch.cat([weighed, counted]), t)
        sums = torch.cat([weighed.mean(1), quarters.flatten() / terms.shape[1], terms.new_ones(1)])
        bad = ~losses["loss"].detach().isfinite().all()
        self.step = sums if self.step is None else self.step + sums
        self.bad = bad if self.bad is None else self.bad | bad

    @torch.no_grad()
    def end_step(self, number: int, norm: Tensor) -> None:
        """After the batches of the optimizer step `number`: its gradient's norm, and what the ranks know of each other's losses."""
        if self.step is None or self.bad is None:
            return
        self.bad = sum_over_ranks(self.bad.float()) > 0
        step = self.step / self.step[-1]
        sums = torch.cat([step[:-1], norm.detach().double().reshape(1), step[-1:]])
        before = torch.zeros_like(sums) if self.sums is None else self.sums
        self.sums, self.step = torch.where(self.bad, before, before + sums), None
        self.arriving.append((number, Arriving(self.bad)))

    def bad_step(self, wait: bool = False) -> int | None:
        """The first step with a loss that is not finite, or None. Without `wait` the last LATE steps are not looked at where the device is
        not the host, the same on all ranks."""
        while self.first_bad is None and self.arriving and (wait or len(self.arriving) > LATE or self.arriving[0][1].event is None):
            number, bad = self.arriving.popleft()
            self.first_bad = number if bad.get() else None
        return self.first_bad

    def read(self) -> dict[str, float]:
        """The means by name, and start again."""
        if self.sums is None:
            return {}
        sums, k = sum_over_ranks(self.sums).cpu(), len(self.names)  # one message, whatever there is to say
        self.sums = None
        quarters = sums[k:-2].reshape(k + 1, QUARTERS)
        names = [*self.names, "gradient_norm", *(f"{name}/t{i + 1}of{QUARTERS}" for name in self.names for i in range(QUARTERS))]
        means = torch.cat([sums[:k] / sums[-1], sums[-2:-1] / sums[-1], (quarters[:-1] / quarters[-1]).flatten()])
        return {name: value for name, value in zip(names, means.tolist(), strict=True) if value == value}

    def state_dict(self) -> dict[str, Any]:
        """What the ranks have summed since the last reading, in the mean."""
        return {"names": self.names, "sums": None if self.sums is None else sum_over_ranks(self.sums).cpu() / rank_and_world()[1]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """See state_dict; every rank goes on with the mean, so that a step counts the same however many made it."""
        self.names = list(state["names"])
        if state["sums"] is not None:
            self.sums = state["sums"].to(device)
