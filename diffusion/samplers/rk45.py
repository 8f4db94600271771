"""The probability-flow ODE by an adaptive Runge-Kutta method, each image with steps of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.posterior import step
from diffusion.samplers.base import State
from diffusion.samplers.blend import log_ratio, mix
from diffusion.schedules import Schedule
from diffusion.typing import Noise, expand

# Dormand & Prince 1980: where the stages are, what they are made of, and fifth minus fourth order for the error
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class RK45:
    """The probability-flow ODE (SDE eq. 13) by Dormand and Prince's pair of orders 5 and 4.

    It is integrated as dz/dphi = cos(phi) eps - sin(phi) x_0, z = x/sqrt(alpha^2 + sigma^2), tan(phi) = sigma/alpha, which is finite
    at alpha = 0, from the grid's first time to its last positive one, and by one first-order move from there to 0, which is
    x_0 itself: two States, and the grid's other times do not matter.

    A step is accepted when the error estimate, over atol + rtol |z|, has root mean square below 1. Each image has its own step size, so
    that it does not depend on its batch; the calls made (a denoiser's `nfe`, 6 a step and 1 at either end) are those of the slowest.
    Raises ValueError when a tolerance is not positive or the steps become too small to move the time."""

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"sampler.rtol={self.rtol} and sampler.atol={self.atol} must be positive.")

    def __call__(self, denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:  # noqa: ANN001
        schedule, inner = denoise.schedule, times[times > 0]
        (alpha, sigma), (alpha_s, sigma_s) = schedule(inner[0]), schedule(inner[-1])

        def slope(phi: Tensor, z: Tensor) -> Tensor:
            t = schedule.time(-2 * phi.tan().log())
            estimate = denoise(z * expand(_norm(t, schedule), z), t)
            return expand(phi.cos(), z) * estimate.eps - expand(phi.sin(), z) * estimate.x0

        start, end = log_ratio(inner[0], schedule).exp().atan(), log_ratio(inner[-1], schedule).exp().atan()
        z = self.solve(slope, x / (alpha**2 + sigma**2).sqrt(), start.item(), end.item())
        x = z * (alpha_s**2 + sigma_s**2).sqrt()
        estimate = denoise(x, inner[-1])
        yield State(x, estimate.x0, inner[-1])
        for s in times[len(inner) :]:
            yield State(step(x, estimate.x0, inner[-1], s, schedule), estimate.x0, s)

    def solve(self, slope: Callable[[Tensor, Tensor], Tensor], z: Tensor, start: float, end: float) -> Tensor:
        """z at phi = end > 0 from z [b, ...] at phi = start, where dz/dphi = slope(phi [b], z)."""
        phi = torch.full((len(z),), start, dtype=torch.float64, device=z.device)
        size, first = (end - phi) / 20, slope(phi, z)
        while (left := end - phi).any():
            if (size.abs() < 1e-13)[left != 0].any():
                raise ValueError(
                    "RK45 takes ever smaller steps: raise sampler.rtol and sampler.atol, or mend a denoiser that is not finite."
                )
            h = torch.where(size.abs() < left.abs(), size, left)
            slopes = [first]
            for node, row in zip(NODES[1:], STAGES, strict=True):
                moved = z + expand(h, z) * mix(row, slopes)
                slopes.append(slope(phi + node * h, moved))
            scale = self.atol + self.rtol * torch.maximum(z.abs(), moved.abs())
            error = (expand(h, z) * mix(ERROR, slopes) / scale).flatten(1).double().square().mean(1).sqrt().nan_to_num(nan=torch.inf)
            good = error < 1
            phi = torch.where(good, torch.where(h == left, end, phi + h), phi)
            z, first = torch.where(expand(good, z).bool(), moved, z), torch.where(expand(good, z).bool(), slopes[-1], first)
            size = torch.where(left == 0, size, h * (0.9 * error ** (-1 / 5)).clamp(0.2, 10))
        return z


def _norm(t: Tensor, schedule: Schedule) -> Tensor:
    alpha, sigma = schedule(t)
    return (alpha**2 + sigma**2).sqrt()
