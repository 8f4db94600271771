"""A denoiser's error by noise level, beside the least that any network could have: the exact denoiser's, and a Gaussian's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.data import ImageSet
from diffusion.noise import SeededNoise
from diffusion.oracles import EmpiricalDistribution
from diffusion.parameterization import Epsilon, Parameterization
from diffusion.schedules import Schedule
from diffusion.schedules.base import CONTINUOUS_STEPS
from diffusion.typing import Denoise, per_sample_mean

BANDS = 10
MOST = 2**33  # bytes of a training set in float64, beyond which neither the exact denoiser nor the covariance is computed
WIDEST = 2**14  # rows and columns of the largest matrix whose eigenvalues are taken


class Items(NamedTuple):
    """x0 [n, *shape] float64, their conditions [n, ...] or None, and the seed of each one's noise; `words` say which they are. `kinds` [n]
    number the conditions that differ, for the exact denoiser, which asks only whether two are the same."""

    x0: Tensor
    cond: Tensor | None
    seeds: list[int]
    words: str = ""
    kinds: Tensor | None = None


class Errors(NamedTuple):
    """Of n items at k times: the mean squared error of eps over dimensions, float64 [k, n], and of a learned variance the share of values
    with 0 <= v <= 1 (IDDPM eq. 15), [k, n]; None where none is learned."""

    eps: Tensor
    inside: Tensor | None


@dataclass(frozen=True)
class Bands:
    """The errors of eps in k bands of log-SNR, from clean data to noise, each at one time t [k], a step of the schedule.

    `errors` [k, n] of each item by name: model and exact, each on `/train` and `/heldout`, and last/train, of the last weights; `gaussian`
    [k] is the closed form, `inside` [k] the share of the learned variance that lies between its ends, each None where there is none.
    `variance` is the data's, a mean over dimensions, and `fit` their dimensions by the items that the Gaussian's covariance is of. The
    error of x_0 is sigma^2/alpha^2 times that of eps, for all alike."""

    t: Tensor
    log_snr: Tensor
    errors: Mapping[str, Tensor]
    gaussian: Tensor | None
    variance: float
    target: Tensor
    fit: float
    inside: Tensor | None = None

    def mean(self, name: str) -> Tensor:
        """The mean over items, [k]."""
        return self.errors[name].mean(1)

    def error(self, name: str) -> Tensor:
        """The standard error of `mean`, over items, [k]."""
        found = self.errors[name]
        return found.std(1) / found.shape[1] ** 0.5


def band_times(schedule: Schedule, bands: int = BANDS) -> Tensor:
    """The times [k] at which the bands are measured, ascending, k <= `bands`.

    The steps of the schedule, or 1000 even ones in continuous time, have log-SNRs log(alpha^2/sigma^2) between two ends, those that are
    infinite left out. `bands` equal intervals lie between; each is measured at the step nearest to its middle, and one without a step, as
    the last of a cosine schedule, is left out."""
    steps = schedule.num_timesteps or CONTINUOUS_STEPS
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    log_snr = schedule.log_snr(t)
    t, log_snr = t[log_snr.isfinite()], log_snr[log_snr.isfinite()]
    edges = torch.linspace(log_snr[0].item(), log_snr[-1].item(), bands + 1, dtype=torch.float64)
    apart = (log_snr - (edges[1:, None] + edges[:-1, None]) / 2).abs()  # [bands, steps]
    nearest = apart.min(1)
    return t[nearest.indices[nearest.values <= (edges[0] - edges[1]) / 2]].unique()


@torch.no_grad()
def eps_errors(denoise: Denoise, items: Items, times: Tensor, batch_size: int, dtype: torch.dtype = torch.float32) -> Errors:
    """The errors of a denoiser, which is given x_t in `dtype`, at these times [k]. Item i's noise is that of its seed, other noise at each
    time: the same for every denoiser, and whatever the batch size is."""
    squares, shares = [], []
    for rows in torch.arange(len(items.x0)).split(batch_size):
        x0, cond = items.x0[rows], None if items.cond is None else items.cond[rows.to(items.cond.device)]
        noise = SeededNoise([items.seeds[row] for row in rows.tolist()], x0.device)
        found = [one_level(denoise, x0, noise(x0), t, cond, dtype) for t in times]
        squares.append(torch.stack([of.eps for of in found]))
        shares.append([of.inside for of in found])
    learned = [torch.stack([share for share in of if share is not None]) for of in shares if of[0] is not None]
    return Errors(torch.cat(squares, 1), torch.cat(learned, 1) if learned else None)


def one_level(denoise: Denoise, x0: Tensor, eps: Tensor, t: Tensor, cond: Tensor | None, dtype: torch.dtype) -> Errors:
    """The errors [b] at one time."""
    alpha, sigma = denoise.schedule(t)
    estimate = denoise((alpha * x0 + sigma * eps).to(dtype), t.expand(len(x0)).to(x0.device), cond)
    square = per_sample_mean((estimate.eps.double() - eps) ** 2).cpu()
    frac = estimate.frac
    return Errors(square, None if frac is None else per_sample_mean(((frac >= 0) & (frac <= 1)).double()).cpu())


def spectrum(x0: Tensor) -> Tensor | None:
    """The eigenvalues [d] of the covariance of x0 [n, *shape], float64 [d], of these n alone (divided by n); None where both n and d are
    too large. Of fewer rows than dimensions it is taken from the matrix of their products, whose other eigenvalues are the same."""
    rows = x0.flatten(1).double()
    rows = rows - rows.mean(0)
    n, d = rows.shape
    if min(n, d) > WIDEST:
        return None
    found = torch.linalg.eigvalsh(rows.T @ rows if d <= n else rows @ rows.T).clamp(min=0) / n
    return torch.cat([found, found.new_zeros(d - len(found))])


def gaussian_error(eigenvalues: Tensor, log_snr: Tensor) -> Tensor:
    """The least mean squared error of eps, a mean over dimensions, for data N(m, S): mean_i r l_i/(r l_i + 1), r = alpha^2/sigma^2 and l_i
    the eigenvalues [d] of S, at each log r [k] (the Wiener filter's; PRML eq. 2.117). Of x_0 it is 1/r times that.

    No linear estimate of any data with this covariance is better, and this one is as good for them all."""
    ratio = log_snr.exp()[:, None] * eigenvalues.to(log_snr)
    return (ratio / (ratio + 1)).mean(1)


def target_share(read: Parameterization, schedule: Schedule, times: Tensor, variance: float) -> Tensor:
    """What the error of eps is multiplied by to be that of the network's own target, in units of the target's variance, at times [k].

    The target is linear, and an error e of eps is one of -sigma/alpha e of x_0. Its variance is that for x_0 of this variance."""
    alpha, sigma = schedule(times)
    one, none = torch.ones_like(alpha), torch.zeros_like(alpha)
    square = read.target(-sigma / alpha, one, alpha, sigma) ** 2
    return square / (variance * read.target(one, none, alpha, sigma) ** 2 + read.target(none, one, alpha, sigma) ** 2)


def measured_bands(model: Denoise, last: Denoise | None, train: Items, heldout: Items | None, known: Items, batch_size: int) -> Bands:
    """The bands of a model and of its last weights on items of training and, where there are any, held-out ones.

    `known` is all that training sees, mirrored pictures too: the exact denoiser's data (see `EmpiricalDistribution`, EDM eq. 57) and the
    Gaussian's. The exact denoiser's error is the least of any on all of these, of which `train` is a sample; on held-out ones it bounds
    nothing. It is computed in float64, asked for the same conditions by their `kinds`, and left out of more data than fit (`MOST`)."""
    times = band_times(model.schedule)
    log_snr = model.schedule.log_snr(times)
    splits = {"train": train} | ({"heldout": heldout} if heldout is not None else {})
    own = {name: eps_errors(model, items, times, batch_size) for name, items in splits.items()}
    errors = {f"model/{name}": of.eps for name, of in own.items()}
    if last is not None:
        errors["last/train"] = eps_errors(last, train, times, batch_size).eps
    small = known.x0.nbytes <= MOST
    if small:
        exact = EmpiricalDistribution(known.x0, model.schedule, known.kinds)
        for name, items in splits.items():
            errors[f"exact/{name}"] = eps_errors(exact, items._replace(cond=items.kinds), times, batch_size, torch.float64).eps
    eigenvalues = spectrum(known.x0) if small else None
    variance = known.x0.var(0, correction=0).mean().item()
    inside = own["train"].inside
    return Bands(
        times,
        log_snr,
        errors,
        None if eigenvalues is None else gaussian_error(eigenvalues.cpu(), log_snr),
        variance,
        target_share(getattr(model, "parameterization", Epsilon()), model.schedule, times, variance),
        known.x0[0].numel() / len(known.x0),
        None if inside is None else inside.mean(1),
    )


def encoded(
    model: Any, data: ImageSet, numbers: Tensor, device: torch.device, kinds: dict[bytes, int], words: str = "", mirror: bool | None = None
) -> Items:
    """Items `numbers` [n] of a data set as x_0, with the conditions of their labels, numbered by `kinds`, which is added to; of latents,
    the mean that the codec gives.

    With `mirror` said they are what training sees: the conditions themselves are not kept, and where it is true there is the mirrored
    picture of each too, after all of them."""
    labels, views = model.conditions.labels(data), 1 + bool(mirror)
    parts: list[list[Tensor]] = [[] for _ in range(views)]
    conds, found = [], []
    for rows in numbers.split(256):
        chosen = torch.from_numpy(np.array(data.images[rows.numpy()])).to(device)
        for view, part in enumerate(parts):
            part.append(model.codec.encode(chosen.flip(2) if view else chosen).double())
        cond = None if labels is None else model.conditions.of(labels[rows].to(device))
        if cond is not None:
            conds += [cond] if mirror is None else []
            found += [kinds.setdefault(row.numpy().tobytes(), len(kinds)) for row in cond.cpu()]
    x0 = torch.cat([x0 for part in parts for x0 in part])
    numbered = torch.tensor(found * views, device=device) if found else None
    return Items(x0, torch.cat(conds) if conds else None, numbers.tolist() * views, words, numbered)
