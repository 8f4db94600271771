"""Diffusion in the latents of a linear orthogonal autoencoder is diffusion in pixels, seen in other coordinates (Rombach et al. 2112.10752:
nothing but the space changes)."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion.codecs import Autoencoder, Pixels
from diffusion.denoiser import Denoiser
from diffusion.generate import trajectories
from diffusion.grids import Trailing
from diffusion.objectives import Hybrid, Simple
from diffusion.parameterization import V
from diffusion.samplers import DDIM, DDPM, DPMPP2M, Heun, last
from diffusion.schedules import Cosine


class Rotation(nn.Module):
    """z = Q (the pixels of each block of 2 x 2) with an orthogonal Q; deterministic."""

    factor = 2

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.latent_channels = 4 * channels
        generator = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(torch.randn(self.latent_channels, self.latent_channels, dtype=torch.float64, generator=generator))
        self.register_buffer("q", q)

    def rotate(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.q, pixel_unshuffle(x, 2))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.rotate(x)
        return z, torch.full_like(z, -30)

    def decode(self, z: Tensor) -> Tensor:
        return pixel_shuffle(torch.einsum("ji,bjhw->bihw", self.q, z), 2)


class Convolution(nn.Module):
    """Any network of pixels that sees its time."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.conv(x).tanh() + (label / 1000).reshape(-1, 1, 1, 1)


class InLatents(nn.Module):
    """The same function of pixels in the latents' coordinates; each half of the channels is an image of its own."""

    def __init__(self, network: nn.Module, rotation: Rotation) -> None:
        super().__init__()
        self.network, self.rotation = network, rotation

    def forward(self, z: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        out = self.network(self.rotation.decode(z), label, cond)
        return torch.cat([self.rotation.rotate(half) for half in out.split(z.shape[1] // 4, 1)], 1)


def pair(learned_variance: bool = False) -> tuple[Autoencoder, Pixels, Denoiser, Denoiser]:
    """(codec of latents, codec of pixels, a denoiser of latents, the same one of pixels)."""
    rotation, pixels = Rotation(), Pixels((8, 6, 1))
    network = Convolution(1, 1 + learned_variance)
    denoisers = (Denoiser(n, Cosine(), V(), learned_variance) for n in (InLatents(network, rotation), network))
    return Autoencoder(rotation, pixels, [0.0] * 4, [1.0] * 4), pixels, *denoisers


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (5, 8, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_the_loss_is_that_of_pixels(pictures):
    latents, pixels, of_latents, of_pixels = pair()
    x0, z0 = pixels.encode(pictures).double(), latents.encode(pictures)
    t, eps = torch.linspace(0.1, 1, 5, dtype=torch.float64), torch.randn_like(x0)
    assert z0.shape[1:] == latents.shape == (4, 4, 3) and z0.dtype == torch.float64
    there = Simple()(of_latents, z0, t, latents.network.rotate(eps))["loss"]
    here = Simple()(of_pixels, x0, t, eps)["loss"]
    torch.testing.assert_close(there, here, rtol=1e-12, atol=0)


def test_the_gradients_are_those_of_pixels(pictures):
    latents, pixels, of_latents, of_pixels = pair()
    x0, z0 = pixels.encode(pictures).double(), latents.encode(pictures)
    t, eps = torch.linspace(0.1, 1, 5, dtype=torch.float64), torch.randn_like(x0)
    gradients = []
    for denoiser, x, noise in ((of_latents, z0, latents.network.rotate(eps)), (of_pixels, x0, eps)):
        loss = Simple()(denoiser, x, t, noise)["loss"].mean()
        gradients.append(torch.autograd.grad(loss, list(denoiser.parameters())))
    for there, here in zip(*gradients, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=0.5), Heun(), DPMPP2M()], ids=lambda sampler: type(sampler).__name__)
def test_the_samples_are_those_of_pixels(sampler):
    latents, pixels, of_latents, of_pixels = pair()
    times, generator = Trailing(7)(of_pixels.schedule), torch.Generator().manual_seed(3)
    draws = [torch.randn(4, 1, 8, 6, dtype=torch.float64, generator=generator) for _ in range(20)]
    here = last(sampler(of_pixels, draws[0], times, following(draws[1:]))).x
    rotated = [latents.network.rotate(draw) for draw in draws]
    there = last(sampler(of_latents, rotated[0], times, following(rotated[1:]))).x
    torch.testing.assert_close(there, latents.network.rotate(here), rtol=1e-10, atol=1e-10)
    assert torch.equal(latents.decode(there), pixels.decode(here))


def following(draws: list[Tensor]):
    """A source of noise that gives these."""
    rest = iter(draws)
    return lambda x: next(rest)


def test_the_bound_is_one_of_data_without_levels(pictures):
    """A learned variance is trained on the bound of numbers without levels, since latents have none; it is finite at t = 1/T too."""
    latents, _, of_latents, _ = pair(learned_variance=True)
    z0, t = latents.encode(pictures), torch.full((5,), 1e-3, dtype=torch.float64)
    terms = Hybrid(span=latents.range)(of_latents, z0, t, torch.randn_like(z0))
    assert all(value.isfinite().all() for value in terms.values())


def test_a_recipe_shows_pixels():
    latents, _, of_latents, _ = pair()
    states = trajectories(of_latents.float(), DDIM(), Trailing(3), latents.shape, [1, 2])
    assert latents.decode(last(states).x).shape == (2, 8, 6, 1)
