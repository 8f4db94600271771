"""Editing with the samplers, on a mixture of two images whose pixels agree: what is known of one tells the others."""

from dataclasses import replace

import pytest
import torch

from diffusion.editing import FromImage, Inpaint, Reconstruct, edited, interpolated, noised
from diffusion.generate import Recipe, generate
from diffusion.grids import Trailing
from diffusion.noise import SeededNoise, slerp
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM, DDPM, DDIMInversion
from diffusion.schedules import VE, Cosine, Flow
from diffusion.support.errors import UserError

PLUS = torch.full((1, 2, 2), 0.6)
DENOISER = GaussianMixture(torch.stack([PLUS, -PLUS]), torch.tensor([0.1, 0.1]))
GRID = Trailing(30)


def states(sampler, n=64, denoise=DENOISER, grid=GRID):
    noise, times = SeededNoise(range(n), "cpu"), grid(denoise.schedule)
    x = denoise.schedule(times[0])[1] * noise(torch.empty(n, 1, 2, 2, dtype=torch.float64))
    return list(sampler(denoise, x, times, noise))


@pytest.mark.parametrize("schedule", [Cosine(), VE(), Flow()], ids=lambda s: type(s).__name__)
def test_two_steps_of_noise_are_one(schedule):
    """Means and variances of q(x_t | x_0) by way of s, at alpha_t = 0 too; the coefficients are read off unit vectors."""
    s, t, zero = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 1.0, 0.0))
    unit = torch.eye(3, dtype=torch.float64)
    x = noised(noised(unit[0], zero, s, schedule, unit[1]), s, t, schedule, unit[2])
    alpha, sigma = schedule(t)
    torch.testing.assert_close(x[0], alpha)
    torch.testing.assert_close(x[1:].norm(), sigma)


def test_an_image_is_kept_the_more_the_less_noise_it_is_given():
    shares = []
    for strength in (0.1, 0.5, 0.75, 1.0):
        x = states(FromImage(DDPM(), PLUS, strength), 200)[-1].x
        assert ((x.abs() - 0.6).abs() < 0.5).all()
        shares.append((x.mean((1, 2, 3)) > 0).double().mean().item())
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.5, abs=0.15)


def test_full_strength_is_sampling_from_noise_where_there_is_pure_noise():
    flow = GaussianMixture(DENOISER.means, DENOISER.stds, schedule=Flow())
    assert torch.equal(states(FromImage(DDIM(), PLUS, 1.0), denoise=flow)[-1].x, states(DDIM(), denoise=flow)[-1].x)


@pytest.mark.parametrize("resample", [1, 6])
def test_inpainting_keeps_what_the_mask_leaves(resample):
    mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    path = states(Inpaint(DDPM(), PLUS, mask, resample), 100)
    x = path[-1].x
    assert len(path) == 29 * resample + 1
    assert path[-1].t == 0
    assert (x[:, 0, 0, 0] == PLUS[0, 0, 0]).all()
    painted = (x[:, 0].flatten(1)[:, 1:].mean(1) > 0).double().mean().item()
    assert painted > (0.9 if resample > 1 else 0.5)


def test_resampling_fits_the_new_to_the_old():
    mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    share = [(states(Inpaint(DDPM(), PLUS, mask, r), 300)[-1].x[:, 0, 1, 1] > 0).double().mean().item() for r in (1, 8)]
    assert share[1] > share[0] + 0.02, share


def test_an_edit_of_one_image_does_not_depend_on_its_neighbours():
    sampler = Inpaint(DDPM(), PLUS, torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), 3)
    torch.testing.assert_close(states(sampler, 5)[-1].x[:2], states(sampler, 2)[-1].x, rtol=1e-12, atol=1e-12)


def test_inversion_and_back():
    """The round trip's error falls with refinements of the inversion and with steps."""
    image = PLUS + 0.05 * torch.tensor([[[1.0, -1.0], [0.5, -0.2]]])

    def error(refinements, steps):
        x = states(Reconstruct(DDIM(), image, DDIMInversion(refinements)), 1, grid=Trailing(steps))[-1].x
        return (x - image).abs().max().item()

    assert error(0, 200) < 0.5 * error(0, 50)
    assert error(4, 50) < 0.5 * error(0, 50)
    assert error(4, 200) < 1e-3


def test_slerp():
    a, b = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    half = slerp(a, b, 0.5)
    assert half.std().item() == pytest.approx(1, abs=0.05)  # a mean of the two would have 0.71
    torch.testing.assert_close(half, (a + b) / (a + b).norm() * ((a.norm() + b.norm()) / 2), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("sampler", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_the_ends_of_an_interpolation_are_the_seeds_images(sampler):
    recipe = Recipe(DENOISER, sampler, Trailing(5), (1, 2, 2))
    between = interpolated(recipe, (3, 8), 5)
    ends = generate(DENOISER, sampler, Trailing(5), (1, 2, 2), [3, 8])
    assert between.shape == (5, 2, 2, 1)
    assert torch.equal(between[[0, -1]], ends)
    assert torch.equal(interpolated(replace(recipe, batch_size=2), (3, 8), 5), between)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"_target_": "diffusion.editing.FromImage", "image": None}, "edit.image=FILE"),
        ({"_target_": "diffusion.editing.FromImage", "image": "no/such.png"}, "cannot be read"),
        ({"_target_": "diffusion.editing.FromImage", "image": __file__}, "cannot be read"),
    ],
)
def test_a_missing_picture_is_a_sentence(edit, words):
    with pytest.raises(UserError, match=words):
        edited(Recipe(DENOISER, DDIM(), GRID, (1, 2, 2)), edit)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="strength"):
        FromImage(DDIM(), PLUS, 1.5)
    with pytest.raises(ValueError, match="no step of the grid"):
        states(FromImage(DDIM(), PLUS, 0.01))
    with pytest.raises(ValueError, match="resample"):
        Inpaint(DDIM(), PLUS, PLUS, 0)
    with pytest.raises(UserError, match="two seeds"):
        interpolated(Recipe(DENOISER, DDIM(), GRID, (1, 2, 2)), [1], 3)
    assert edited(recipe := Recipe(DENOISER, DDIM(), GRID, (1, 2, 2)), {}) is recipe
