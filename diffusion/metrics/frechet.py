"""The Fréchet distance between two Gaussians fitted to features, in float64 from the first addition to the last."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from diffusion.support.ranks import rank_and_world, sum_over_ranks


class Fitted(Protocol):
    """A Gaussian fitted to features: of how many vectors (None where that is not known), mean [dim] and unbiased covariance [dim, dim]."""

    @property
    def n(self) -> int | None: ...

    @property
    def mean(self) -> Tensor: ...

    @property
    def cov(self) -> Tensor: ...

    def to_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian that is known by its mean [dim] and covariance [dim, dim], float64, as a file of statistics says them."""

    mean: Tensor
    cov: Tensor
    n: int | None = None

    def to_dict(self) -> dict[str, Tensor]:
        """mean and cov, for a hash."""
        return {"mean": self.mean, "cov": self.cov}


class Moments:
    """Number, mean and scatter matrix of feature vectors, accumulated in float64.

    Kept are n, the mean m = (1/n) sum x, and the scatter S = sum (x - m)(x - m)^T. Two sets join by (Chan, Golub and
    LeVeque 1979, eq. 2.1 in matrix form)

        m = m_a + (n_b / n) d,    S = S_a + S_b + (n_a n_b / n) d d^T,    d = m_b - m_a,  n = n_a + n_b.

    Raw sums of x x^T would lose log10(mean^2 / variance) digits when the mean is taken away; this form loses none, and
    the directions in which the features hardly vary decide the distance when there are fewer images than dimensions.
    The number, too, is a tensor, so that an update never waits for the device. What is given as `over`, (number [], mean [dim], scatter
    [dim, dim]), float64, is gone on with in place.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu", over: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        # Apple's GPU has no float64; everything else keeps the sums where the features are.
        zeros = partial(torch.zeros, dtype=torch.float64, device="cpu" if torch.device(device).type == "mps" else device)
        self.count, self.mean, self.scatter = (zeros(()), zeros(dim), zeros(dim, dim)) if over is None else over

    @property
    def n(self) -> int:
        """How many vectors; waits for the device."""
        return int(self.count)

    @property
    def dim(self) -> int:
        return self.mean.numel()

    @property
    def cov(self) -> Tensor:
        """The unbiased covariance S / (n - 1), [dim, dim]. Raises ValueError for fewer than two vectors."""
        if self.n < 2:
            raise ValueError(f"A covariance needs at least 2 images, and there are {self.n}: raise metric.n.")
        return self.scatter / (self.n - 1)

    def update(self, features: Tensor) -> None:
        """Add feature vectors [n, dim] of any floating-point type; n may be 0."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"Features of shape {tuple(features.shape)} were given where [n, {self.dim}] is needed.")
        if len(features) == 0:
            return
        # Move, then widen: features cross to another device in their own type.
        features = features.detach().to(self.mean.device).double()
        mean = features.mean(0)
        self._join(len(features), mean, features - mean)

    def merge(self, other: "Moments") -> None:
        """Add what another object has seen."""
        if other.n == 0:
            return
        self.scatter += other.scatter.to(self.scatter.device)
        self._join(other.n, other.mean.to(self.mean.device), self.mean.new_empty(0, self.dim))

    def _join(self, n: int, mean: Tensor, centred: Tensor) -> None:
        """Join n vectors with this mean, whose scatter is that of the rows of `centred`."""
        total = self.count + n
        delta = mean - self.mean
        # d d^T rides along as one more row: the scatter matrix, the large thing here, is gone through once.
        rows = torch.cat([centred, delta[None] * (self.count * n / total).sqrt()])
        self.scatter.addmm_(rows.T, rows)
        self.mean += delta * (n / total)
        self.count += n

    def all_reduce(self) -> "Moments":
        """The moments of all ranks' features together, on every rank; this object stays as it is.

        Ranks may hold different numbers of vectors, and none. All ranks must call it. Without a process group the
        result is a copy.
        """
        whole = Moments(self.dim, self.mean.device)
        if rank_and_world()[1] == 1:
            whole.merge(self)
            return whole
        whole.count = sum_over_ranks(self.count)
        whole.mean = sum_over_ranks(self.mean * self.count) / whole.count.clamp(min=1)
        delta = self.mean - whole.mean
        whole.scatter = sum_over_ranks(self.scatter + self.count * torch.outer(delta, delta))
        return whole

    def to_dict(self) -> dict[str, Tensor]:
        """n, mean and scatter as tensors, for saving."""
        return {"n": torch.tensor(self.n), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> "Moments":
        """The inverse of `to_dict`."""
        moments = cls(len(tensors["mean"]), device)
        moments.count.fill_(int(tensors["n"]))
        moments.mean.copy_(tensors["mean"])
        moments.scatter.copy_(tensors["scatter"])
        return moments


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of what all of `parts` have seen, as a new object: m = sum n_i m_i / n, S = sum S_i + n_i (m_i - m)(m_i - m)^T."""
    whole = Moments(parts[0].dim, parts[0].mean.device)
    counts, means = torch.stack([part.count for part in parts]), torch.stack([part.mean for part in parts])
    whole.count = counts.sum()
    whole.mean = counts @ means / whole.count.clamp(min=1)
    for part in parts:
        whole.scatter += part.scatter
    rows = counts.sqrt()[:, None] * (means - whole.mean)
    whole.scatter.addmm_(rows.T, rows)
    return whole


def root(cov: Tensor) -> Tensor:
    """R with R R^T = cov: its square root but for a rotation. A rounding error's negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()


def root_within(a: Fitted, moments: Moments) -> Tensor:
    """What `frechet_distance` may take for the root of a's covariance C_a where b is of some or all of these n images.

    Fewer images than dimensions have a scatter matrix S of rank n - 1. With V for its eigenvectors, the C_b of any of the images is
    V V^T C_b V V^T, and C_a C_b has the eigenvalues of V^T C_a V V^T C_b V beside zeros: the result is V R, R R^T = V^T C_a V, and each
    distance is a matter of n - 1 dimensions."""
    v = torch.linalg.eigh(moments.scatter.to(a.mean.device)).eigenvectors[:, 1 - moments.n :]
    return v @ root(v.T @ a.cov @ v)


def frechet_distance(a: Fitted, b: Fitted, root_a: Tensor | None = None) -> float:
    """The squared Fréchet distance of two Gaussians (Dowson and Landau 1982; FID of Heusel et al. 2017, eq. 6).

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    The trace of the square root is the sum of the roots of the eigenvalues of the symmetric R^T C_b R, C_a = R R^T,
    which has the same eigenvalues as C_a C_b; those that rounding made negative count as 0, so nothing is ever complex.
    `root_a` is R = root(C_a), or `root_within`, which several distances to one a compute once. It is computed on a's device. Below dim + 1
    images a covariance is singular: the number is finite but biased, and a warning says so. Raises ValueError for
    unequal dimensions or fewer than two images.
    """
    dim = a.mean.numel()
    if dim != b.mean.numel():
        raise ValueError(f"Moments of {dim} and of {b.mean.numel()} dimensions cannot be compared: use the same extractor.")
    n = min((fitted.n for fitted in (a, b) if fitted.n is not None), default=dim + 1)
    if n <= dim:
        warnings.warn(
            f"The covariance of n = {n} images in d = {dim} dimensions is singular, so the distance is biased: "
            f"use more than {dim} images to compare it with others.",
            stacklevel=2,
        )
    cov_a, cov_b = a.cov, b.cov.to(a.mean.device)
    r = root(cov_a) if root_a is None else root_a
    trace_root = torch.linalg.eigvalsh(r.T @ cov_b @ r).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean.to(a.mean.device)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    return distance.item()
