"""A classifier of noisy images, for guidance. The module that trains denoisers trains it too: the classifier takes the place of the
denoiser, and its cross-entropy that of the objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diffusion.networks import Encoder, UNet
from diffusion.parameterization import unit_size
from diffusion.schedules import Schedule
from diffusion.support.ranges import Some
from diffusion.typing import expand

NO_CLASSES = "task=classifier needs a data set with classes, and conditions=classes to be told of them; here there are none."


class NoisyClassifier(nn.Module):
    """p(c | x_t) (ADM sec. 4): `classifier(x_t, label) -> logits [b, classes]`, label [b] = schedule.label(t), float32; `schedule` is the
    one that it was trained on. Its network sees the x_t of an exploding path at the size of its noise, as a denoiser's does."""

    learned_variance: ClassVar[bool] = False
    uses: ClassVar[Mapping[str, str]] = {"guide a run by it": "python sample.py ckpt=runs/NAME guidance=[classifier,clip] guidance.ckpt={}"}

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x_t: Tensor, label: Tensor) -> Tensor:
        """x_t [b, ...], label [b]; the logits have x_t's dtype."""
        weight = next(self.parameters(), x_t)
        scale = unit_size(*self.schedule(self.schedule.labelled(label)))
        return self.network((expand(scale, x_t) * x_t).to(weight.dtype), label).to(x_t.dtype)


def of_unet(network: UNet, schedule: Schedule, num_classes: Some) -> NoisyClassifier:
    """A classifier of `num_classes` classes, made of a U-Net's way down. Raises ValueError for no classes, and as `Encoder` does."""
    if not num_classes:
        raise ValueError(NO_CLASSES)
    return NoisyClassifier(Encoder(network, num_classes), schedule)


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(c | x_t) at x_t = alpha_t x_0 + sigma_t eps, in nats, and whether the likeliest class is c (ADM app. H)."""

    learned_variance: ClassVar[bool] = False

    def __call__(self, classifier: NoisyClassifier, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> dict[str, Tensor]:
        if cond is None:
            raise ValueError(NO_CLASSES)
        alpha, sigma = (expand(v, x0) for v in classifier.schedule(t))
        logits = classifier(alpha * x0 + sigma * eps, classifier.schedule.label(t).float())
        loss = cross_entropy(logits, cond, reduction="none")
        with torch.no_grad():
            return {"loss": loss, "accuracy": (logits.argmax(1) == cond).to(loss)}
