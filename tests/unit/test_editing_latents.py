"""Edits of pictures by a model of their latents: the picture is encoded, and the mask follows the latents."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from diffusion.codecs import Autoencoder, Pixels, Standardised
from diffusion.conditions import Unconditional
from diffusion.editing import FromImage, Inpaint, edited
from diffusion.generate import Recipe, trajectories
from diffusion.grids import Trailing
from diffusion.model import Model
from diffusion.oracles import EmpiricalDistribution
from diffusion.samplers import DDIM, last


class Means(nn.Module):
    """The autoencoder whose latents are the means of blocks of 4 x 4, continued at the edges, in three channels."""

    factor, latent_channels = 4, 3

    def moments(self, x):
        mean = avg_pool2d(pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4), mode="replicate"), 4)
        return mean, torch.full_like(mean, -30.0)

    def decode(self, z):
        return interpolate(z, scale_factor=4)


def recipe(height=16, width=16, **more):
    """Of a model of two pictures, one light and one dark."""
    codec = Autoencoder(Means(), Pixels((height, width, 3)), mean=[0.1] * 3, std=[0.5] * 3, **more)
    data = torch.stack([torch.full(codec.shape, value) for value in (-1.5, 1.5)])
    return Recipe(EmpiricalDistribution(data), DDIM(), Trailing(6), codec.shape, codec)


def saved(path, array):
    Image.fromarray(array).save(path)
    return str(path)


def test_the_picture_is_encoded(tmp_path):
    """And read at the pictures' size, not at that of the latents."""
    levels = np.arange(16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)
    edit = {"_target_": "diffusion.editing.FromImage", "image": saved(tmp_path / "a.png", levels), "strength": 0.5}
    made = edited(recipe(), edit).sampler
    assert isinstance(made, FromImage) and made.image.shape == (3, 4, 4)
    x = levels.astype(float) / 127.5 - 1
    expected = (x.reshape(4, 4, 4, 4, 3).mean((1, 3)) - 0.1) / 0.5
    torch.testing.assert_close(made.image.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)


def test_the_mask_is_that_of_the_latents(tmp_path):
    """One pixel of a block is enough, also of a block that the picture ends in; and what the mask leaves stays."""
    mask = np.zeros((13, 18), dtype=np.uint8)
    mask[3, 4] = mask[12, 17] = 255
    files = {"image": saved(tmp_path / "a.png", np.full((13, 18, 3), 90, dtype=np.uint8)), "mask": saved(tmp_path / "m.png", mask)}
    whole = edited(recipe(13, 18), {"_target_": "diffusion.editing.Inpaint", **files})
    assert isinstance(whole.sampler, Inpaint)
    expected = torch.zeros(1, 4, 5)
    expected[0, 0, 1] = expected[0, 3, 4] = 1
    assert torch.equal(whole.sampler.mask, expected)
    x = last(trajectories(whole.denoiser, whole.sampler, whole.grid, whole.shape, [0, 1])).x
    stays = (expected == 0).expand(3, 4, 5)
    assert torch.equal(x[:, stays], whole.sampler.image[stays].expand(2, -1))
    assert (x - whole.sampler.image).abs().amax((0, 1))[expected[0] == 1].min() > 0.1


def test_a_size_is_that_of_pictures():
    """Where one side is typed alone, the other is the pictures' own, not that of their latents."""
    one = recipe()
    model = Model(one.denoiser, one.codec, Unconditional())
    assert model.size(24, None) == (24, 16) and model.size(None, None) is None
    assert one.codec.sized(*model.size(None, 20)).shape == (3, 4, 5)
    assert Model(one.denoiser, Standardised((6, 5, 2), [0.0] * 2, [1.0] * 2), Unconditional()).size(None, 7) == (6, 7)
