"""Running sums of a training run's losses, kept on the device and read all at once."""

import torch
from torch import Tensor

QUARTERS = 4


class Meter:
    """Means since the last reading: each term of the loss, all and in each quarter of t, the gradient's norm. Updating never waits for the
    device; reading waits once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.quarters: Tensor | None = None
        self.first_bad: Tensor | None = None  # the first batch whose loss is not finite, -1 for none

    @torch.no_grad()
    def update(self, losses: dict[str, Tensor], t: Tensor, batch: int, weight: Tensor | None = None) -> None:
        """Add one batch's per-sample losses [b] at times t [b], each of `weight` [b] (1 if None), the importance weights of a t that is not
        drawn uniformly: so the means are those over uniform t. `batch` is its number."""
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
        self.first_bad = torch.where(loss.isfinite().all() | (before >= 0), before, batch)

    def gradient_norm(self, norm: Tensor) -> None:
        """Add one optimizer step's gradient norm."""
        self._add("gradient_norm", norm.detach().float())

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def bad_batch(self) -> int | None:
        """The number of the first batch with a loss that is not finite, or None."""
        first = -1 if self.first_bad is None else int(self.first_bad)
        return None if first < 0 else first

    def read(self) -> dict[str, float]:
        """The means by name, and start again."""
        if self.quarters is None:
            return {}
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        for name, row in zip(self.names, self.quarters[:-1] / self.quarters[-1], strict=True):
            means |= {f"{name}/t{i + 1}of{QUARTERS}": row[i] for i in range(QUARTERS)}
        values = torch.stack([value.double() for value in means.values()]).tolist()
        self.sums, self.counts = {}, {}
        self.quarters.zero_()
        return {name: value for name, value in zip(means, values, strict=True) if value == value}
