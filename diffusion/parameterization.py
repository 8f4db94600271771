"""What the network's output means. Each is a pair of conversions between the output and (x_0, eps), exact at every (alpha, sigma).

`x0` and `eps` read the output `out` [b, ...] at x_t = alpha x_0 + sigma eps; `target` is the output that would be perfect.
alpha and sigma are already shaped to multiply x_t.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Parameterization(ABC):
    """The contract. `needs_signal`: whether x_0 is lost where alpha = 0."""

    needs_signal: ClassVar[bool] = False

    @abstractmethod
    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of x_0 that the output stands for."""

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of eps that the output stands for; by default what is left of x_t after x_0."""
        return (x_t - alpha * self.x0(out, x_t, alpha, sigma)) / sigma

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output for a known pair (x_0, eps)."""


class Epsilon(Parameterization):
    """The output is eps (DDPM eq. 14)."""

    needs_signal = True

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * out) / alpha

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return out

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps


class X0(Parameterization):
    """The output is x_0."""

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return out

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0


class V(Parameterization):
    """The output is v = alpha eps - sigma x_0 (Salimans & Ho 2202.00512, sec. 4), for any alpha and sigma."""

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma * x_t + alpha * out) / (alpha**2 + sigma**2)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * eps - sigma * x0


class Score(Parameterization):
    """The output is the score, -eps / sigma (NCSN; SDE eq. 7)."""

    needs_signal = True

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t + sigma**2 * out) / alpha

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -sigma * out

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -eps / sigma


class Velocity(Parameterization):
    """The output is the straight path's velocity, u = eps - x_0 (FM eq. 23; rectified flow), on any path."""

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * out) / (alpha + sigma)

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t + alpha * out) / (alpha + sigma)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - x0
