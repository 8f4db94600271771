"""Bits per dimension of a data set's images under the model, over all ranks."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.conditions import Originals
from diffusion.guidance import Clip
from diffusion.likelihood import bin_width, bits_per_dimension, dequantised, flow_log_likelihood, variational_bound
from diffusion.metrics.base import UNCONDITIONAL, Metric, abbreviated
from diffusion.metrics.plots import bound_plot
from diffusion.metrics.reference import RealImages, facts
from diffusion.noise import SeededNoise
from diffusion.samplers import RK45
from diffusion.support.errors import UserError
from diffusion.support.progress import bar
from diffusion.support.ranges import Few, Positive, Probability, Seed, Several
from diffusion.support.ranks import gather_dealt, rank_and_world
from diffusion.typing import Codec, Conditions, Denoise, Rows


class BitsPerDimension(Metric):
    """The mean over `images` images of the data set, evenly spaced in its order (all for null), and its standard error under NAME/error.

    Nothing is generated: n = 0. The model is measured without guidance, and given the images' own conditions if it knows any. Image i draws
    from a generator of its own, seeded seed + i, so that neither batches nor ranks matter. Raises ValueError for fewer than 2."""

    word: ClassVar[str]
    quantisation: ClassVar[str]
    n = 0
    denoiser: Denoise  # this and the codec are set by `model`
    codec: Codec
    conditions: Conditions
    labels: Rows | None  # this and the means are set by `compute`
    means: Tensor

    def __init__(self, images: Several | None = 1000, batch_size: Few = 128, seed: Seed = 0) -> None:
        if images is not None and images < 2:
            raise ValueError(f"A mean with an error needs at least 2 images: metric.images={images} is too few.")
        super().__init__()
        self.images, self.batch_size, self.seed = images, batch_size, seed

    def setup(self, imageset: RealImages, device: torch.device | str, conditions: Conditions = UNCONDITIONAL) -> None:
        """Choose the images. Raises ValueError for a set without images, UserError for an autoencoder."""
        if isinstance(conditions, Originals):
            raise UserError(f"{self.word} is a likelihood by a diffusion model, and this is an autoencoder: say metric=[psnr,ssim,rfd].")
        total = len(imageset.images)
        count = min(self.images or total, total)
        if count < 2:
            raise ValueError(f"The data set {imageset.name} ({imageset.split}) has {total} images, and at least 2 are needed.")
        self.to(device)
        self.imageset, self.chosen = imageset, torch.arange(count) * total // count
        self.name, self.reference_facts = f"{self.word}@{abbreviated(count)}", facts(imageset, count)
        self.reset()

    def model(self, denoiser: Denoise, codec: Codec, conditions: Conditions = UNCONDITIONAL) -> None:
        """Take the denoiser inside the guidance, and its codec and conditions."""
        self.reset()  # what was computed was of another
        self.denoiser, self.codec, self.conditions = getattr(denoiser, "unguided", denoiser), codec, conditions

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Generated images are ignored."""

    def compute(self) -> dict[str, Tensor]:
        """The mean and its standard error, on every rank. All ranks must call it. Raises ValueError without `model`."""
        if not hasattr(self, "denoiser"):
            raise ValueError(f"{self.name} measures a model: call model(denoiser, codec) first.")
        rank, world = rank_and_world()
        mine = torch.arange(len(self.chosen))[rank::world]
        own = [rows for rows in mine.split(self.batch_size) if len(rows)]
        self.labels = self.conditions.labels(self.imageset)
        parts = [self.measure(*self.batch(rows)) for rows in bar(own, f"measuring {self.name}", len(own))]
        width = self.columns()
        rows = gather_dealt(torch.cat([*parts, torch.empty(0, width, dtype=torch.float64, device=self.device)]))
        self.means = rows.mean(0).cpu()
        return self.mean_of_images(rows[:, 0])

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None, SeededNoise]:
        """The images with these numbers in the model's space, their conditions, and their noise."""
        chosen = self.chosen[rows].numpy()
        x0 = self.codec.encode(torch.from_numpy(np.array(self.imageset.images[chosen])).to(self.device)).contiguous()
        cond = self.conditions.of(None if self.labels is None else self.labels[torch.from_numpy(chosen)].to(self.device))
        return x0, cond, SeededNoise((rows + self.seed).tolist(), self.device)

    def columns(self) -> int:
        """How many numbers `measure` gives for an image."""
        return 1

    @abstractmethod
    def measure(self, x0: Tensor, cond: Tensor | None, noise: SeededNoise) -> Tensor:
        """For each image, bits per dimension and what else is to be averaged: [b, columns], float64."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that the number depends on, as plain data."""

    def passport(self) -> dict[str, Any]:
        """This metric's part of the `Passport`; after `setup`."""
        return {
            "metric": self.name,
            "n": len(self.chosen),
            "quantisation": self.quantisation,
            "extractor": {},
            "reference": self.reference_facts,
            "statistics": "",
            "settings": {"seed": self.seed, **self.settings()},
            "intervals": {"error": "standard error of the mean over the images"},
        }


class VariationalBits(BitsPerDimension):
    """The whole variational bound, all T + 1 terms (see `variational_bound`), under nll-vlb@n; `clip` clips x_0 to the codec's range in it.

    `variance` is fixed_small, fixed_large, or None for the model's own: the one it learned, or was trained with by objective=vlb, and
    otherwise the larger.

    `facts` has the means of the terms under NAME/terms, L_0 first, of the prior's under NAME/prior, and of the learned variance's fraction
    at each step under NAME/fraction; the picture shows them."""

    word, quantisation = "nll-vlb", "uint8, discretised Gaussian decoder"

    def __init__(
        self,
        images: Several | None = 1000,
        batch_size: Few = 128,
        seed: Seed = 0,
        clip: bool = True,
        variance: Literal["fixed_small", "fixed_large"] | None = None,
    ) -> None:
        super().__init__(images, batch_size, seed)
        self.clip, self.variance = clip, variance

    def columns(self) -> int:
        return 2 + 2 * (self.denoiser.schedule.num_timesteps or 0)  # the bound of a continuous schedule is refused by `measure`

    def measure(self, x0: Tensor, cond: Tensor | None, noise: SeededNoise) -> Tensor:
        span = self.codec.range
        if span is None:
            raise UserError(f"{self.name} is of pictures of 8 bits, and this model's space has no levels; choose another metric.")
        denoiser = Clip(self.denoiser, *span) if self.clip else self.denoiser
        bound = variational_bound(denoiser, x0, cond, noise, span, self.variance or getattr(self.denoiser, "fixed_variance", None))
        fraction = torch.full_like(bound.terms[0], torch.nan) if bound.fraction is None else bound.fraction
        return torch.cat([bound.bits[:, None], bound.prior[:, None], bound.terms, fraction.expand_as(bound.terms)], 1).double()

    def facts(self) -> dict[str, Any]:
        terms, fraction = self.means[2:].chunk(2)
        found = {"terms": terms.tolist(), "prior": self.means[1].item()}
        found |= {} if fraction.isnan().any() else {"fraction": fraction.tolist()}
        return super().facts() | {f"{self.name}/{key}": value for key, value in found.items()}

    def picture(self) -> Tensor | None:
        """See `bound_plot`."""
        facts = self.facts()
        terms, prior, fraction = facts[f"{self.name}/terms"], facts[f"{self.name}/prior"], facts.get(f"{self.name}/fraction")
        return bound_plot(f"{self.name}: {self.means[0]:.3f}", terms, prior, fraction)

    def settings(self) -> dict[str, Any]:
        return {"clip": self.clip} | ({"variance": self.variance} if self.variance else {})  # the model's own follows from its weights


class FlowBits(BitsPerDimension):
    """Bits per dimension by the probability-flow ODE of uniformly dequantised images (see `flow_log_likelihood`), under nll-ode@n, with the
    tolerances of an adaptive solver. x_0 is not clipped, and the first noise level is that of `t_min`. NAME/error holds the trace
    estimator's error."""

    word, quantisation = "nll-ode", "uniform dequantisation"

    def __init__(
        self,
        images: Several | None = 1000,
        batch_size: Few = 128,
        seed: Seed = 0,
        rtol: Positive = 1e-4,
        atol: Positive = 1e-4,
        t_min: Probability | None = None,
    ) -> None:
        super().__init__(images, batch_size, seed)
        self.solver, self.t_min = RK45(rtol, atol), t_min

    def measure(self, x0: Tensor, cond: Tensor | None, noise: SeededNoise) -> Tensor:
        width = bin_width(self.codec)
        log_p = flow_log_likelihood(self.denoiser, dequantised(x0, width, noise), cond, noise, self.solver, self.t_min)
        return bits_per_dimension(log_p, x0[0].numel(), width).double()[:, None]

    def settings(self) -> dict[str, Any]:
        return {"rtol": self.solver.rtol, "atol": self.solver.atol, "t_min": self.t_min, "clip": False}
