"""Running sums of a training run's losses, kept on the device and read all at once."""

import torch
from torch import Tensor

from diffusion.support.ranks import rank_and_world, sum_over_ranks

QUARTERS = 4


class Meter:
    """Means since the last reading, over the samples of all ranks: each term of the loss, all and in each quarter of t, and the gradient's
    norm. Updating never waits for the device; reading waits once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.quarters: Tensor | None = None
        self.first_bad: Tensor | None = None  # the first step whose loss is not finite, -1 for none

    @torch.no_grad()
    def update(self, losses: dict[str, Tensor], t: Tensor, step: int, weight: Tensor | None = None) -> None:
        """Add one batch's per-sample losses [b] at times t [b], each of `weight` [b] (1 if None), the importance weights of a t that is not
        drawn uniformly: so the means are those over uniform t. `step` is the number of its step."""
        weight = torch.ones_like(t) if weight is None else weight.to(t)
        for name, value in losses.items():
            self._add(f"loss/{name}" if name != "loss" else "loss", (weight.float() * value.detach().float()).mean())
        terms = torch.stack([value.detach().double() for value in losses.values()])
        loss = losses["loss"].detach()
        if self.quarters is None:
            self.names = [f"loss/{name}" if name != "loss" else "loss" for name in losses]
            self.quarters = torch.zeros(len(losses) + 1, QUARTERS, dtype=torch.float64, device=t.device)
        quarter = (t * QUARTERS).ceil().long().clamp(1, QUARTERS) - 1
        self.quarters.index_add_(1, quarter, weight.double() * torch.cat([terms, torch.ones_like(terms[:1])]))
        before = torch.full((), -1, device=t.device) if self.first_bad is None else self.first_bad
        self.first_bad = torch.where(loss.isfinite().all() | (before >= 0), before, step)

    def gradient_norm(self, norm: Tensor) -> None:
        """Add one optimizer step's gradient norm."""
        self._add("gradient_norm", norm.detach().float())

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def bad_step(self) -> int | None:
        """The number of the first step with a loss that is not finite, or None."""
        first = -1 if self.first_bad is None else int(self.first_bad)
        return None if first < 0 else first

    def read(self) -> dict[str, float]:
        """The means by name, and start again. All ranks, which have made as many steps of as many samples, must call it."""
        if self.quarters is None or not self.sums:
            return {}
        names = [*self.sums, *(f"{name}/t{i + 1}of{QUARTERS}" for name in self.names for i in range(QUARTERS))]
        means = torch.stack([value.double() / self.counts[name] for name, value in self.sums.items()])
        sums = sum_over_ranks(torch.cat([means, self.quarters.flatten()]))  # one message, whatever there is to say
        quarters = sums[len(means) :].reshape(self.quarters.shape)
        values = torch.cat([sums[: len(means)] / rank_and_world()[1], (quarters[:-1] / quarters[-1]).flatten()]).tolist()
        self.sums, self.counts = {}, {}
        self.quarters.zero_()
        return {name: value for name, value in zip(names, values, strict=True) if value == value}
