"""Guidance by a classifier of noisy images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Estimate, labels
from diffusion.guidance.base import Guidance, of_x0, place, same_space
from diffusion.guidance.contrast import Unconditional, at
from diffusion.posterior import both_levels
from diffusion.schedules import Schedule
from diffusion.support.ranges import Finite
from diffusion.typing import Codec, Conditions, Denoise, expand


@dataclass(frozen=True)
class Classifier(Guidance):
    """eps <- eps - scale sigma_t grad log p(c | x_t), and x_0 with it (ADM alg. 2): the score of p(x_t) p(c | x_t)^scale.

    `classifier(x_t, label) -> logits [b, classes]`, label [b] float32 as the network is told it; the gradient goes through it alone.
    The denoiser keeps its condition (ADM's best): with a perfect classifier, scale w is then classifier-free guidance of scale 1 + w. For a
    model with no classes put `Unconditional` inside. A null condition (-1) is not guided; nor is anything where alpha = 0.

    For samplers like DDPM, ADM alg. 1 shifts the posterior's mean by scale Sigma grad. The mean holds (alpha_s b2/sigma_t^2) x_0, with
    a = alpha_t/alpha_s and b2 the larger variance (`diffusion.posterior`), and x_0 grows here by scale sigma_t^2/alpha_t grad, so the mean
    shifts by scale (b2/a) grad: alg. 1 with Sigma = beta_t / sqrt(1 - beta_t), fixed_large but for the root. With a smaller Sigma, alg. 1
    guides as much less: that is `ClassifierMean`."""

    classifier: Callable[[Tensor, Tensor], Tensor]
    scale: Finite = 1.0
    codec: Codec | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        same_space(self.classifier, self.codec, "The classifier")
        if isinstance(self.classifier, Denoiser):
            raise ValueError("guidance.ckpt is a run that trained a denoiser; train a classifier with `python train.py task=classifier`.")
        noise = getattr(self.classifier, "schedule", self.schedule)
        if noise != self.schedule:
            raise ValueError(
                f"The classifier was trained on the noise of {noise}, and the model is of {self.schedule}; train it "
                "again with the model's schedule."
            )

    def asks(self, conditions: Conditions) -> Conditions:
        """The model's conditions; where it is made `Unconditional` inside, the classes that the classifier tells apart.

        Raises ValueError for a model that has no conditions and is not made so."""
        inner: Denoise = self.denoiser
        while isinstance(inner, Guidance) and not isinstance(inner, Unconditional):
            inner = inner.denoiser
        if isinstance(inner, Unconditional):
            return getattr(self.classifier, "conditions", conditions)
        if not conditions.given:
            raise ValueError("This model has no classes, so a classifier guides it as guidance=[unconditional,classifier].")
        return super().asks(conditions)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        return self.denoiser(x_t, t, cond) if self.scale == 0 else self.pair(x_t, t, cond)[0]

    def pair(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Estimate, Estimate]:
        if cond is None:
            raise ValueError("A classifier guides towards a class, and none was given: name classes=[...], or leave the classifier out.")
        plain = self.denoiser(x_t, t, cond)
        return self.pushed(plain, x_t, t, self.scale * self.gradient(x_t, t, cond)), plain

    def pushed(self, plain: Estimate, x_t: Tensor, t: Tensor, push: Tensor) -> Estimate:
        """The estimate moved by `push`, scale grad log p(c | x_t)."""
        alpha, sigma = (expand(v, x_t) for v in self.schedule(t))
        push = sigma * (alpha > 0) * push
        x0 = plain.x0 + push * sigma / alpha.clamp(min=torch.finfo(x_t.dtype).tiny)
        return Estimate(x0, plain.eps - push, plain.frac)

    def gradient(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """grad log p(c | x_t) with respect to x_t, 0 for a null condition."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_p = at(self.classifier, x)(x, labels(self.schedule, t, x)).log_softmax(1)
            chosen = log_p.gather(1, cond.clamp(min=0)[:, None]).squeeze(1)
            return torch.autograd.grad((chosen * (cond >= 0)).sum(), x)[0]


@dataclass(frozen=True)
class ClassifierMean(Classifier):
    """The mean of x_s shifted by scale Sigma grad log p(c | x_t) (ADM alg. 1), where x_s ~ N(mean, Sigma) is the sampler's own move, and
    Sigma its own variance: learned, fixed_small or fixed_large. `sampler` and `grid` are those that sample.

    The mean holds (alpha_s b2/sigma_t^2) x_0 (`diffusion.posterior`), so x_0 moves by the shift over that factor. On the last move the
    smaller variance, which is 0, is replaced by that of the move before, as in the bound. What clips x_0 afterwards clips the shift too:
    guidance=[clip,classifier_mean] is ADM's order.

    Raises ValueError for a sampler that draws from no such Gaussian, and without a grid."""

    sampler: Any = field(default=None, repr=False)
    grid: Callable[[Schedule], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is None or not hasattr(self.sampler, "drawn"):
            raise ValueError(
                f"guidance=classifier_mean shifts the mean that sampler=ddpm draws around, on its grid, and {type(self.sampler).__name__} "
                "draws otherwise: say sampler=ddpm, or guidance=[classifier,clip], which goes with every sampler."
            )

    def pushed(self, plain: Estimate, x_t: Tensor, t: Tensor, push: Tensor) -> Estimate:
        assert self.grid is not None  # see __post_init__
        times, i = place(self.grid, self.schedule, t)
        (_, alpha_s), (sigma_t, _), fresh = both_levels(t, times[i - 1], self.schedule)
        j = i.clamp(min=min(2, len(times) - 1))
        _, (_, before), new = both_levels(times[j], times[j - 1], self.schedule)
        small, large = (expand(v.clamp(min=torch.finfo(v.dtype).tiny), x_t) for v in (before**2 * new, sigma_t**2 * fresh))
        shift = self.sampler.drawn(small, large, plain.frac) * push
        return of_x0(self.schedule, plain.x0 + shift / expand(alpha_s * fresh, x_t), x_t, t, plain.frac)
