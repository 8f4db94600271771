"""Editing images with the samplers. Each edit is a sampler around a sampler, so `generate` makes edited images like any others, one for
each seed, and guidance, grids and codecs work unchanged. Images here are in the model's space and broadcast to the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from diffusion.conditions import Originals
from diffusion.generate import Recipe
from diffusion.noise import Between
from diffusion.pictures import MODES, read_image
from diffusion.posterior import shrink
from diffusion.reconstruction import Autoencoding, Beside
from diffusion.samplers import DDIMInversion, State, last
from diffusion.samplers.base import part
from diffusion.schedules import Schedule
from diffusion.support.build import asks_for, build
from diffusion.support.errors import UserError
from diffusion.support.ranges import Checked, Count, Fraction, Images
from diffusion.typing import Denoise, Noise


def noised(x_s: Tensor, s: Tensor, t: Tensor, schedule: Schedule, z: Tensor) -> Tensor:
    """A draw of q(x_t | x_s), s < t (DDPM eq. 2, for any two times): a x_s + sqrt(b2) z, a = alpha_t/alpha_s,
    b2 = sigma_t^2 - a^2 sigma_s^2."""
    (alpha_t, sigma_t), alpha_s = schedule(t), schedule(s)[0]
    return alpha_t / alpha_s * x_s + sigma_t * shrink(t, s, schedule).sqrt() * z


@dataclass(frozen=True)
class FromImage(Checked):
    """Image to image (SDEdit 2108.01073, alg. 1): the image noised to the grid's first time at or below `strength`, and sampled from there.

    strength 1 samples from noise and keeps only what x_1 holds of the image. Raises ValueError if no step of the grid is left."""

    sampler: Callable
    image: Tensor
    strength: Fraction = 0.6

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        rest = times[times <= self.strength + 1e-12]
        if len(rest) < 2:
            raise ValueError(f"edit.strength={self.strength} leaves no step of the grid; raise it, or take a larger grid.steps.")
        z = x / denoise.schedule(times[0])[1]
        start = noised(self.image.to(x).expand_as(x), rest[-1], rest[0], denoise.schedule, z)
        yield from part(self.sampler, (len(rest) - 1) / (len(times) - 1))(denoise, start, rest, noise)


@dataclass(frozen=True)
class Inpaint(Checked):
    """RePaint (2201.09865, alg. 1): after each move to s, the part that stays is replaced by a draw of q(x_s | x_0) of the image.

    `mask` is 1 where the image is to be painted, 0 where it stays, shaped to multiply the image. Each move is made `resample` times, with a
    step back from s to t in between, which fits the painted part to the rest. The sampler is run one move at a time, so a multistep sampler
    is of first order here."""

    sampler: Callable
    image: Tensor
    mask: Tensor
    resample: Count = 1

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        image, mask, zero = self.image.to(x).expand_as(x), self.mask.to(x), times[-1]
        sampler = part(self.sampler, 1 / (len(times) - 1))
        for t, s in pairwise(times):
            for again in reversed(range(self.resample if s > 0 else 1)):
                state = last(sampler(denoise, x, torch.stack([t, s]), noise))
                known = noised(image, zero, s, denoise.schedule, noise(x)) if s > 0 else image
                x = mask * state.x + (1 - mask) * known
                if again:
                    yield State(x, state.x0, s)
                    x = noised(x, s, t, denoise.schedule, noise(x))
            yield State(x, state.x0, s)


@dataclass(frozen=True)
class Reconstruct:
    """The image encoded to noise by `inversion`, and decoded by the sampler (DDIM sec. 5.4), both with the same condition."""

    sampler: Callable
    image: Tensor
    inversion: Callable = DDIMInversion(refinements=2)  # noqa: RUF009 (frozen)

    def __call__(self, denoise: Denoise, x: Tensor, times: Tensor, noise: Noise = torch.randn_like) -> Iterator[State]:
        encoded = last(self.inversion(denoise, self.image.to(x).expand_as(x), times, noise)).x
        yield from self.sampler(denoise, encoded, times, noise)


def between(seeds: Sequence[int], n: int) -> list[Between]:
    """n noises on the way from one seed to another; the first and the last are the seeds' own. Raises UserError unless there are two."""
    if len(seeds) != 2:
        raise UserError(f"between={list(seeds)} should be two seeds, such as between=[3,8].")
    return [Between(seeds[0], seeds[1], weight) for weight in torch.linspace(0, 1, n, dtype=torch.float64).tolist()]


def interpolated(recipe: Recipe, seeds: Sequence[int], n: int, cond: Tensor | None = None) -> Tensor:
    """Images [n, h, w, c] on the way from one seed to another, cond [n, ...] or None. Raises UserError unless there are two seeds."""
    return recipe(between(seeds, n), cond).images


def beside(recipe: Recipe) -> Recipe:
    """The recipe of an autoencoder, with each picture at the left of its reconstruction."""
    channels, height, width = recipe.shape
    return replace(recipe, denoiser=Beside(autoencoding(recipe)), shape=(channels, height, 2 * width))


def autoencode(recipe: Recipe, n: Images, image: str | None = None) -> Recipe:
    """Originals beside their reconstructions: those of a file, or of all files in a folder, again and again; None: those of the run's data.

    Raises UserError for a model that is no autoencoder, and for a file that is no picture."""
    pairs = beside(recipe)
    return pairs if image is None else replace(pairs, conditions=Originals(shown=all_of(image, "image", recipe)))


def interpolate(recipe: Recipe, n: Images, images: Sequence[Any] | None = None) -> Recipe:
    """n pictures on the straight line between the latents of two, which are files, or numbers of pictures in the run's data.

    Raises UserError for a model that is no autoencoder, unless there are two, and for a file that is no picture."""
    model = autoencoding(recipe)
    if images is None or len(images) != 2:
        raise UserError("This edit is between two pictures: edit.images=[FILE,FILE], or their numbers in the run's data, as [3,8].")
    originals: Any = recipe.conditions  # as an autoencoder's are
    numbered = (originals.numbered(one, "edit.images") if isinstance(one, int) else None for one in images)
    ends = [all_of(one, "images", recipe)[:1] if end is None else end for one, end in zip(images, numbered, strict=True)]
    with torch.no_grad(), recipe.computing():
        first, second = (model.latents(end)[0].float().cpu() for end in ends)
    weight = torch.linspace(0, 1, n).reshape(-1, 1, 1, 1)
    return replace(recipe, conditions=Originals(shown=torch.lerp(first, second, weight)))


def autoencoding(recipe: Recipe) -> Autoencoding:
    """The recipe's autoencoder. Raises UserError if it has none."""
    if not isinstance(recipe.denoiser, Autoencoding):
        raise UserError("This edit shows what an autoencoder makes of pictures, and this run is none: say a ckpt of task=autoencoder.")
    return recipe.denoiser


def all_of(path: Any, key: str, recipe: Recipe) -> Tensor:
    """The pictures of a file, or of the files in a folder by their names, uint8 [n, h, w, c], of the recipe's size. Raises UserError."""
    channels, *size = recipe.shape
    files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [path]
    return torch.stack([picture(str(file), key, channels, size) for file in files])


def edited(recipe: Recipe, edit: Mapping[str, Any], n: int = 1) -> Recipe:
    """The recipe that makes the edit of a configuration in n images: by its sampler, its `image` and `mask` being files, or as a function
    of the recipe that it names. An empty configuration changes nothing. Of latents, each of which stands for several pixels, one is painted
    if any of its pixels is to be.

    Raises UserError for a file that is no picture, for a model of anything but pictures, and for an autoencoder where none is asked for, or
    the reverse."""
    if edit and asks_for(edit, "recipe"):
        return build(dict(edit), "edit", recipe=recipe, n=n)
    if isinstance(recipe.denoiser, Autoencoding):
        raise UserError("An autoencoder makes no pictures out of noise: say edit=autoencode, or edit=interpolate, or a ckpt that denoises.")
    if not edit:
        return recipe
    seen = recipe.codec.decode(torch.empty(0, *recipe.shape))
    if seen.ndim != 4 or seen.dtype != torch.uint8:
        raise UserError("A file's picture can be edited by a model of pictures of 8 bits, and this one makes other things; leave edit out.")
    *size, channels = seen.shape[1:]
    given: dict[str, Any] = {
        "sampler": recipe.sampler,
        "image": recipe.codec.encode(picture(edit["image"], "image", channels, size)[None])[0],
    }
    if "mask" in edit:
        mask = (picture(edit["mask"], "mask", 1, size).permute(2, 0, 1) > 127).float()
        given["mask"] = max_pool2d(mask, getattr(recipe.codec, "factor", 1), ceil_mode=True)
    settings = {key: value for key, value in edit.items() if key not in given}
    return replace(recipe, sampler=build(settings, "edit", **given))


def picture(path: str | None, key: str, channels: int, size: Sequence[int]) -> Tensor:
    """A picture as uint8 [h, w, c] of this (height, width), c = 1 or 3, read as those of an image folder are; what is transparent in a mask
    is to be painted. Raises UserError if there is none at `path`."""
    if path is None:
        raise UserError(f"This edit needs a picture: edit.{key}=FILE.")
    if channels not in MODES:
        raise UserError(f"A file's picture has 1 or 3 channels, and the model's have {channels}; edit with Python's {key}=TENSOR.")
    height, width = size
    try:
        image = read_image(str(path), channels).resize((width, height), Image.Resampling.BOX)
    except ValueError as error:
        raise UserError(f"edit.{key}={path} cannot be read as a picture: {error}.") from error
    return torch.from_numpy(np.array(image)).reshape(height, width, -1)
