"""Exact denoisers, known in closed form: for tests, notebooks, and tables of a sampler's own error.

Both are called like any denoiser, (x_t, t, cond) -> Estimate, work in any dimension and at any alpha and sigma, 0 included, and
compute in the dtype of x_t (make it float64 to measure orders of convergence).
"""

from math import log, pi

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.schedules import Cosine, Schedule
from diffusion.typing import expand


def _same_class(cond: Tensor, classes: Tensor | None, null: Tensor) -> Tensor:
    """Whether cond [b, ...] is null [...] or one of classes [n, ...], [b, n]. Raises ValueError if there are no classes."""
    if classes is None:
        raise ValueError("A condition was given to an exact denoiser whose data have no classes: give it their classes, or no condition.")
    rows, known = cond.reshape(len(cond), 1, -1), classes.to(cond).reshape(1, len(classes), -1)
    return (rows == known).all(2) | (rows == null.to(cond).reshape(1, 1, -1)).all(2)


class GaussianMixture:
    """x_0 ~ sum_k w_k N(mean_k, std_k^2 I): then x_t ~ sum_k w_k N(alpha mean_k, v_k I), v_k = alpha^2 std_k^2 + sigma^2.

    means [k, *shape]; stds [k]; weights [k], normalised here (equal if None). `classes` [k, ...] gives each component a class, a number or
    any tensor: a condition c [b, ...] then restricts sample b to the components of class c, and `null` [...] or no condition to none."""

    def __init__(
        self,
        means: Tensor,
        stds: Tensor,
        weights: Tensor | None = None,
        schedule: Schedule = Cosine(),  # noqa: B008 (frozen)
        classes: Tensor | None = None,
        null: Tensor = torch.tensor(-1),  # noqa: B008 (never written to)
    ) -> None:
        weights = torch.ones(len(means), dtype=torch.float64) if weights is None else weights.double()
        self.means, self.stds, self.weights = means.double(), stds.double(), weights / weights.sum()
        self.schedule, self.classes, self.null, self.device = schedule, classes, null, means.device

    def _components(self, x: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """(log w_k N(x; alpha mean_k, v_k I) [b, k], E[x_0 | x, k] [b, k, *shape])."""
        alpha, sigma = (value.to(x.device).expand(len(x)) for value in self.schedule(t.to(torch.float64)))
        means, stds = self.means.to(x), self.stds.to(x)
        variance = (alpha[:, None] ** 2 * stds**2 + sigma[:, None] ** 2).to(x)  # [b, k]
        gap = x[:, None] - expand(alpha, x)[:, None] * means  # [b, k, *shape]
        square = gap.flatten(2).square().sum(2)
        logits = self.weights.to(x).log() - 0.5 * (square / variance + x[0].numel() * (variance.log() + log(2 * pi)))
        if cond is not None:
            logits = logits.masked_fill(~self.of_class(cond), -torch.inf)
            logits = logits - self.log_class_weight(cond)[:, None].to(x)
        pull = (alpha[:, None] * stds**2).to(x) / variance
        return logits, means + expand(pull.flatten(), gap.flatten(0, 1)).reshape(*pull.shape, *[1] * (x.ndim - 1)) * gap

    def of_class(self, cond: Tensor) -> Tensor:
        """Whether each component is of each condition's class, [b, k]; all are of the null condition."""
        return _same_class(cond, self.classes, self.null)

    def log_class_weight(self, cond: Tensor) -> Tensor:
        """log p(c) for each condition [b]; 0 for the null condition."""
        return (self.of_class(cond).to(self.weights) * self.weights.to(cond.device)).sum(1).log()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """The exact E[x_0 | x_t, c] and E[eps | x_t, c] = -sigma score."""
        logits, expected = self._components(x_t, t, cond)
        weights = logits.softmax(1)
        x0 = (weights.reshape(*weights.shape, *[1] * (x_t.ndim - 1)) * expected).sum(1)
        alpha, sigma = (expand(value, x_t) for value in self.schedule(t))
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    def log_prob(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x_t = x | c) in nats, [b]."""
        return self._components(x, t, cond)[0].logsumexp(1)

    def score(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """grad log p(x_t = x | c), [b, *shape]: (alpha E[x_0 | x] - x) / sigma^2 where sigma > 0."""
        alpha, sigma = (expand(value, x) for value in self.schedule(t))
        return (alpha * self(x, t, cond).x0 - x) / sigma**2

    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n exact samples of x_0 [n, *shape], float64; with cond [n], of those classes."""
        weights = self.weights.expand(n, -1)
        if cond is not None:
            weights = weights * self.of_class(cond)
        k = torch.multinomial(weights, 1, generator=generator).squeeze(1)
        z = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, generator=generator, device=self.device)
        return self.means[k] + expand(self.stds[k], z) * z


class EmpiricalDistribution:
    """x_0 uniform over the rows of `data` [n, *shape]: the perfect denoiser of a data set, with no training and no model error.

    E[x_0 | x_t] = sum_i softmax_i(-||x_t - alpha x_i||^2 / (2 sigma^2)) x_i. The data are read in chunks of `chunk` rows with a running
    maximum, so that memory does not grow with n. `labels` [n, ...]: a condition c [b, ...] restricts sample b to the rows whose label is
    c, and `null` [...] to none."""

    def __init__(
        self,
        data: Tensor,
        schedule: Schedule = Cosine(),  # noqa: B008 (frozen)
        labels: Tensor | None = None,
        chunk: int = 4096,
        null: Tensor = torch.tensor(-1),  # noqa: B008 (never written to)
    ) -> None:
        self.data, self.schedule, self.labels, self.chunk, self.null = data.flatten(1), schedule, labels, chunk, null
        self.shape, self.device, self.squares = data.shape[1:], data.device, data.flatten(1).square().sum(1)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """The exact E[x_0 | x_t, c] and E[eps | x_t, c]."""
        x = x_t.flatten(1)
        alpha, sigma = (expand(value, x) for value in self.schedule(t))
        top, total, mean = x.new_full((len(x), 1), -torch.inf), x.new_zeros(len(x), 1), torch.zeros_like(x)
        for i in range(0, len(self.data), self.chunk):
            rows = self.data[i : i + self.chunk].to(x)
            logits = (alpha * x @ rows.T - 0.5 * alpha**2 * self.squares[i : i + self.chunk].to(x)) / sigma**2
            if cond is not None:
                mine = _same_class(cond, None if self.labels is None else self.labels[i : i + self.chunk], self.null)
                logits = logits.masked_fill(~mine, -torch.inf)
            new = torch.maximum(top, logits.amax(1, keepdim=True))
            kept = torch.where(top.isinf(), 0.0, (top - new).exp())
            weights = torch.where(new.isinf(), 0.0, (logits - new).exp())
            total, mean, top = kept * total + weights.sum(1, keepdim=True), kept * mean + weights @ rows, new
        x0 = (mean / total).reshape(x_t.shape)
        alpha, sigma = (expand(value, x_t) for value in self.schedule(t))
        return Estimate(x0, (x_t - alpha * x0) / sigma)
