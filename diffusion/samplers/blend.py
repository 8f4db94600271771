"""The parts that the deterministic samplers share. Each makes its moves with `step`, and differs only in the x_0 that it feeds to it.

The probability-flow ODE has two forms (EDM eq. 4; DPM-Solver eq. 3.4; DPM-Solver++ eq. 8), with s = sigma/alpha and lambda = -log s:

    d(x/alpha) = eps ds                       eps held constant: the Euler step in s, DPM-Solver-1
    d(x/sigma) = x_0 d(e^lambda)              x_0 held constant: `step`, DPM-Solver++(1)

At first order the two are one move. A higher order replaces the constant by an average of the estimates known so far: an average of
x_0 goes to `step` as it is, an average of eps by way of `hold_eps`. The averages' weights are those of a quadrature, from `weights`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.denoiser import Estimate
from diffusion.schedules import Schedule
from diffusion.schedules.base import remembered

Known = tuple[Tensor, Estimate]  # an estimate and the time it was made at
Quadrature = Callable[[Tensor, int], Tensor]  # (delta, k) -> the moments int_0^1 u^j w(u) du, j < k, of a weight w of integral 1


@remembered
def log_ratio(t: Tensor, schedule: Schedule) -> Tensor:
    """log s = log(sigma/alpha) = -lambda, float64: -inf where sigma = 0, +inf where alpha = 0."""
    return -schedule.log_snr(t.double()) / 2


def curved(t: Tensor, s: Tensor, schedule: Schedule) -> bool:
    """Whether the move from t to s has room for a second evaluation: not from alpha = 0, not to sigma = 0, and not down a cliff.

    With a = sigma/alpha, a slope that is half the estimate at the move's end is wrong by (a_t - a_s)/(2 a_s) times an error of its x_0, a
    first-order move by less than once that error. A cliff is where that is over 8 times what the image at a_s is made of, noise a_s or data
    of about 1: from 20,291, where the cosine schedule ends, to 13 on 20 even steps, where the two estimates differ for any network. From
    a_t < 2 there is none, since x_0 is nearly known."""
    top, bottom = (log_ratio(u, schedule).exp().item() for u in (t, s))
    cliff = top > 2 and top - bottom > 16 * bottom * max(1, bottom)
    return bottom > 0 and not cliff


def hold_eps(eps: Tensor, known: Known, schedule: Schedule) -> Tensor:
    """The x_0 with which `step` keeps `eps` constant from the time t of `known`, the estimate at the move's start.

    It is (x_t - sigma_t eps)/alpha_t = x_0 - s_t (eps - eps_t). At alpha_t = 0, where that is lost, the estimate's own x_0."""
    t, estimate = known
    ratio = log_ratio(t, schedule).exp()
    return estimate.x0 - ratio * (eps - estimate.eps) if ratio < torch.inf else estimate.x0


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_i w_i value_i."""
    return sum((w * value for w, value in zip(weights, values, strict=True)), torch.zeros(()))


def constant(delta: Tensor, k: int) -> Tensor:
    """int_0^1 u^j du = 1/(j + 1), j < k: the average over the move. For k = 2, half the slope: the midpoint rule."""
    return 1 / torch.arange(1, k + 1, dtype=torch.float64)


def exponential(delta: Tensor, k: int) -> Tensor:
    """int_0^1 u^j e^(delta u) du / int_0^1 e^(delta u) du, j < k: the average with the ODE's own weight.

    By parts, I_j = (e^delta - j I_(j-1))/delta; these are the phi functions of DPM-Solver app. B up to their scale."""
    moments = [torch.expm1(delta) / delta]
    for j in range(1, k):
        moments.append((delta.exp() - j * moments[-1]) / delta)
    return torch.stack(moments) / moments[0]


def weights(nodes: Sequence[Tensor], end: Tensor, moments: Quadrature) -> list[float]:
    """Weights of values known at `nodes` in their average from nodes[0] to `end`: exact for polynomials through all the nodes.

    With u = (node - nodes[0])/(end - nodes[0]), sum_i w_i u_i^j = moments_j. A node at infinity (alpha = 0) gets no weight; a move from
    or to infinity (alpha = 0, sigma = 0) is of first order, all weight on nodes[0]."""
    at = torch.stack(list(nodes))
    delta, known = end - at[0], at.isfinite()
    if not delta.isfinite():
        return [1.0] + [0.0] * (len(at) - 1)
    u, out = (at[known] - at[0]) / delta, torch.zeros_like(at)
    out[known] = torch.linalg.solve(u ** torch.arange(len(u))[:, None], moments(delta, len(u)))
    return out.tolist()
