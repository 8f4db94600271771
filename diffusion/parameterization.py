"""What the network's output means. Each is a pair of conversions between the output and (x_0, eps), exact at every (alpha, sigma).

`x0` and `eps` read the output `out` [b, ...] at x_t = alpha x_0 + sigma eps; `target` is the output that would be perfect.
alpha and sigma are already shaped to multiply x_t.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffusion.support.ranges import Checked, Positive


def unit_size(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The factor that brings the x_t of an exploding path back to the size of its noise, 1/sqrt(1 + sigma^2) for alpha = 1 (k-diffusion;
    EDM table 1, iDDPM's column); 1 on any other path."""
    return (alpha**2 + sigma**2).clamp(min=1).rsqrt()


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

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What x_t is multiplied by before the network sees it: `unit_size`."""
        return unit_size(alpha, sigma)


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


class ScaledScore(Parameterization):
    """The output over sigma is the score (NCSNv2 technique 3): the same score as `Score`, by a network whose output is of size 1."""

    needs_signal = True

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t + sigma * out) / alpha

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -out

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -eps


@dataclass(frozen=True)
class EDM(Checked, Parameterization):
    """EDM's preconditioning (eq. 7, table 1), x_0 = c_skip x_t + c_out F(c_in x_t), for data of deviation sigma_data on any path:

        c_in = 1/w,  c_skip = alpha sigma_data^2 / w^2,  c_out = sigma_data sigma / w,  w^2 = alpha^2 sigma_data^2 + sigma^2.

    The network's input and its target both have variance 1 (EDM app. B.6 at alpha = 1). c_noise is the schedule's label."""

    sigma_data: Positive = 0.5

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha * self.sigma_data) ** 2 + sigma**2).rsqrt()

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_in = self.scale_in(alpha, sigma)
        return self.sigma_data * c_in * (self.sigma_data * c_in * alpha * x_t + sigma * out)

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_in = self.scale_in(alpha, sigma)
        return c_in * (c_in * sigma * x_t - self.sigma_data * alpha * out)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.scale_in(alpha, sigma) * (sigma / self.sigma_data * x0 - alpha * self.sigma_data * eps)


class Velocity(Parameterization):
    """The output is the straight path's velocity, u = eps - x_0 (FM eq. 23; rectified flow), on any path."""

    def x0(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * out) / (alpha + sigma)

    def eps(self, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t + alpha * out) / (alpha + sigma)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - x0
