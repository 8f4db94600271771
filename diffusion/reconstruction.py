"""Autoencoders and their loss. The denoiser's place is taken by an autoencoder that is told a picture, so that recipes, metrics, grids and
albums make reconstructions as they make any images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffusion.denoiser import Estimate
from diffusion.networks.autoencoder import Autoencoded, like
from diffusion.schedules import Schedule
from diffusion.support.ranges import Checked, Few, Natural, NonNegative, Positive
from diffusion.typing import expand

CONTRACT = ("factor", "latent_channels", "moments", "decode")  # what an autoencoder has


class Autoencoding(nn.Module):
    """An autoencoder in a denoiser's place: it is told a picture, and its x_0 is the picture's reconstruction, whatever x_t and t are.

    `network` is what `networks.autoencoder` says, or any torch module with `factor`, `latent_channels`, `moments` and `decode`; it is
    trained by its `forward`. `pixels` is the codec of pictures. The latents are the mean of the posterior. Raises ValueError for a network
    that is no autoencoder, and for another codec."""

    learned_variance: ClassVar[bool] = False
    uses: ClassVar[Mapping[str, str]] = {
        "its reconstructions": "python sample.py ckpt={} edit=autoencode",
        "diffusion in its latents": "python train.py dataset={dataset} codec=autoencoder codec.ckpt={}",
    }
    network: Any  # torch says of a module's attributes that they may be tensors

    def __init__(self, network: nn.Module, schedule: Schedule, codec: Any) -> None:
        super().__init__()
        if codec.range is None:
            raise ValueError("task=autoencoder is for pictures of 8 bits, and this codec has no range: say codec=pixels.")
        if not all(hasattr(network, name) for name in CONTRACT):
            raise ValueError(f"task=autoencoder trains an autoencoder, and {type(network).__name__} is none: say network=autoencoder.")
        self.network, self.schedule, self.pixels = network, schedule, codec

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def latents(self, pictures: Tensor) -> Tensor:
        """The posterior's mean [b, z, ceil(h/f), ceil(w/f)] of pictures, uint8 [b, h, w, c]."""
        return self.network.moments(self.pixels.encode(pictures.to(self.device)))[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """x_t [b, c, h, w], t [] or [b]; cond are pictures, uint8 [b, h, w, c], or latents, float [b, z, h', w']. Raises ValueError for
        none."""
        if cond is None:
            raise ValueError("An autoencoder makes no picture out of noise: it is told one, as edit=autoencode does.")
        latents = cond if cond.is_floating_point() else self.latents(cond)
        x0 = like(self.network.decode(latents), x_t).to(x_t.dtype)
        alpha, sigma = (expand(level, x_t) for level in self.schedule(t))
        return Estimate(x0, (x_t - alpha * x0) / sigma)


@dataclass(frozen=True)
class Beside:
    """Pairs: the picture that an autoencoder is told and, at its right, the reconstruction; x_t is [b, c, h, 2 w]."""

    denoiser: Autoencoding

    @property
    def schedule(self) -> Schedule:
        """The autoencoder's."""
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        """The autoencoder's."""
        return self.denoiser.device

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Estimate:
        """cond are pictures, uint8 [b, h, w, c]. Raises ValueError for none."""
        if cond is None:
            raise ValueError("There is no picture to stand beside its reconstruction.")
        height, width = x_t.shape[-2], x_t.shape[-1] // 2
        if cond.shape[1:3] != (height, width):
            said, own = f"{height} x {width}", " x ".join(map(str, cond.shape[1:3]))
            raise ValueError(f"height and width say {said}, and the pictures are of {own}: leave them out, or say edit.image=FILE.")
        x0 = torch.cat([self.denoiser.pixels.encode(cond), self.denoiser(x_t.chunk(2, dim=-1)[1], t, cond).x0], dim=-1)
        alpha, sigma = (expand(level, x_t) for level in self.schedule(t))
        return Estimate(x0, (x_t - alpha * x0) / sigma)


@dataclass(frozen=True)
class Adversary(Checked):
    """A discriminator of patches that learns to tell reconstructions from pictures, and how the autoencoder learns from it (LDM, app. G).

    `weight` multiplies the adaptive weight; 0 is no discriminator. It begins after `start` steps. `channels` and `layers` are those of
    `networks.PatchDiscriminator`; its learning rate is the autoencoder's times `rate`."""

    weight: NonNegative = 0.5
    start: Natural = 50_000
    channels: Few = 64
    layers: Few | None = None
    rate: Positive = 1.0


@dataclass(frozen=True)
class Reconstruction(Checked):
    """The autoencoder's loss (LDM app. G and their code): sum over elements of (|x - x'|^power + w p)/e^s + s, plus the weighted penalties.

    p = perceptual(x, x') [b] is a distance of the two pictures that counts at every element, if w > 0; s is 0, see `LearnedScale`. `kl` and
    `vq` are the weights of the penalties of these names; one of another name counts as it is. `adversary`, if its weight is above 0, is the
    training module's affair, since it has a network and an optimizer of its own. Raises ValueError for w without a distance."""

    power: Literal[1, 2] = 1
    kl: NonNegative = 1e-6
    vq: NonNegative = 1.0
    w: NonNegative = 0.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    adversary: Adversary = Adversary(weight=0.0)

    learned_variance: ClassVar[bool] = False
    reconstructs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w and self.perceptual is None:
            raise ValueError(f"objective.w={self.w} weighs a perceptual distance, and objective.perceptual is none.")

    @property
    def derives_twice(self) -> bool:
        """The adaptive weight of an adversary takes gradients before the loss's own."""
        return self.adversary.weight > 0

    def __call__(self, x: Tensor, made: Autoencoded, s: Tensor | float = 0.0) -> dict[str, Tensor]:
        """Losses [b] by name, of which "loss" is trained: pictures x [b, c, h, w] and what the network made of them."""
        apart = (x - made.x).abs() ** self.power
        perceptual = {}
        if self.w and self.perceptual is not None:
            perceptual = {"perceptual": self.perceptual(x, made.x)}
            apart = apart + self.w * expand(perceptual["perceptual"], apart)
        reconstruction = (apart / torch.as_tensor(s).exp() + s).flatten(1).sum(1)
        loss = reconstruction
        weights = {"kl": self.kl, "vq": self.vq}
        for name, penalty in made.penalties.items():
            loss = loss + weights.get(name, 1.0) * penalty
        return {"loss": loss, "reconstruction": reconstruction, **perceptual, **made.penalties}


class LearnedScale(nn.Module):
    """A `Reconstruction` whose s is learned with the autoencoder, by the same optimizer; at its best e^s is the mean of
    |x - x'|^power + w p. (LDM's code declares it and gives it to no optimizer.)"""

    def __init__(self, objective: Reconstruction) -> None:
        super().__init__()
        self.objective, self.s = objective, nn.Parameter(torch.zeros(()))
        self.learned_variance, self.reconstructs = objective.learned_variance, objective.reconstructs
        self.adversary, self.derives_twice = objective.adversary, objective.derives_twice

    def forward(self, x: Tensor, made: Autoencoded) -> dict[str, Tensor]:
        losses = self.objective(x, made, self.s)
        return losses | {"scale": self.s.detach().expand(len(x))}
