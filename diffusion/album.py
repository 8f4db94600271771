"""The folder of a call of sample.py: each image, a picture of the first ones, all of them as arrays, and what made them.

The images are kept on the disk as they are made, so that any number of them takes the memory of one batch. The folder has its name when all
of it is there, and not before."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.generate import Asked, Between, Recipe, Seed, SeededNoise, walks
from diffusion.pictures import Bounds, levels, limits, save_gif, save_png, show, tile
from diffusion.samplers import State
from diffusion.support.errors import UserError
from diffusion.support.files import atomic, sweep
from diffusion.support.progress import bar
from diffusion.typing import Rows

log = logging.getLogger(__name__)
OURS = re.compile(r"\d{6,}\.png|grid\.png|samples\.npz|trajectory\.gif|recipe\.json")
RECORD = "recipe.json"
PICTURES, POINTS = 256, 10_000  # the first images, which grid.png shows
FILMED, FRAMES = 64, 60  # those that trajectory.gif shows, and at how many states


def folder_name(made_by: Mapping[str, Any]) -> str:
    """A folder's name: what one would look for, and a hash of all that made the images: two different calls do not share one."""
    sampler, seeds = made_by["sampler"], made_by["seeds"]
    digest = sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    words = [f"step{made_by['step']}", sampler["name"].lower(), str(sampler["grid"].get("steps", "")), f"n{seeds['count']}"]
    return "-".join([*filter(None, words), *(f"{key}{seeds[key]}" for key in seeds if key != "count"), digest])


def seeds_as_data(seeds: Sequence[Seed]) -> dict[str, int]:
    """Seeds that follow each other, or lie between two, as plain data."""
    first = seeds[0]
    ends = {"from": first.first, "to": first.second} if isinstance(first, Between) else {"seed": int(first)}
    return {"count": len(seeds), **ends}


def require_own(folder: Path, key: str) -> None:
    """Raise UserError unless `folder` is free, empty, or holds what an earlier call wrote and nothing else: it will be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{key}={folder} is a file; give a folder that is not there yet.")
    there = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in there if not OURS.fullmatch(name)]
    if foreign or (there and RECORD not in there):
        raise UserError(f"{key}={folder} holds {(foreign or there)[0]}, which is not of a call of sample.py; give another folder.")


def write(
    recipe: Recipe,
    seeds: Sequence[Seed],
    cond: Rows | None,
    folder: Path,
    made_by: Mapping[str, Any],
    columns: int | None = None,
    trajectory: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Make an image for each seed, with these conditions, and write them to `folder`, which takes the place of an earlier one whole. If
    they are texts, `names` are these, one for each image:

    samples.npz     images, labels (the conditions, if any) or prompts, seeds (unless between two), recipe (recipe.json as a string)
    recipe.json     `made_by`, and `nfe`, the calls of the denoiser for an image
    000000.png ...  each image, if they are pictures; floats on one scale
    grid.png        the first 256 pictures in rows of `columns`, those of a text under it, or a scatter of the first 10,000 points
    trajectory.gif  if asked for, the way of the first 64 out of noise, in up to 60 frames"""
    SeededNoise([seeds[0], seeds[-1]], "cpu")  # what is too large is refused now, and not at the last batch
    sweep(folder)
    asked = Asked(recipe.denoiser)
    batches = walks(asked, recipe.sampler, recipe.grid, recipe.shape, seeds, cond, recipe.batch_size)
    film: list[list[Tensor]] = []
    wanted = FILMED if trajectory else 0
    with atomic(folder) as place:
        place.mkdir()
        array = place / "images.npy"
        with recipe.computing(), rows_of(array, len(seeds)) as add:
            for states in bar(batches, f"sampling {len(seeds):,} images", -(-len(seeds) // recipe.batch_size)):
                state, seen = watched(recipe, states, wanted)
                film = [a + b for a, b in zip(film, seen, strict=True)] if film and seen else film or seen
                wanted = max(0, wanted - len(state.x))
                add(recipe.codec.decode(state.x).cpu())
        draw(torch.from_numpy(np.load(array, mmap_mode="c")), place, columns, names)
        if trajectory:
            few = columns or square(min(FILMED, len(seeds)))
            save_gif([show(torch.cat(frames), few) for frames in film], place / "trajectory.gif")
        record = json.dumps({**made_by, "nfe": round(asked.images / len(seeds))}, indent=1)
        (place / RECORD).write_text(record + "\n")
        own = None if isinstance(seeds[0], Between) else np.array(seeds)
        labels = None if cond is None or names is not None else cond[:].numpy()
        texts = None if names is None else np.array(names)
        pack(place / "samples.npz", array, labels=labels, prompts=texts, seeds=own, recipe=np.array(record))


def watched(recipe: Recipe, states: Iterator[State], rows: int) -> tuple[State, list[list[Tensor]]]:
    """The last of a batch's states, and up to FRAMES of them, evenly chosen, as the codec shows the first `rows` images. A warning says
    if the last one holds what is no number, which a picture of 8 bits would hide."""
    every, seen = -(-len(recipe.grid(recipe.denoiser.schedule)) // FRAMES), []
    for i, state in enumerate(states):
        if rows and (i % every == 0 or state.t == 0):
            seen.append([recipe.codec.decode(state.x[:rows]).cpu()])
    if not state.x.isfinite().all():
        log.warning("Some images are of numbers that are none (NaN or infinity): the weights are damaged, or precision is too low.")
    return state, seen


@contextmanager
def rows_of(path: Path, n: int) -> Iterator[Any]:
    """A function that appends rows to an array of n rows, in the format of NumPy; the first ones say its shape and type."""
    with open(path, "wb") as file:

        def add(rows: Tensor) -> None:
            array = np.ascontiguousarray(rows.numpy())
            if not file.tell():
                kind = np.lib.format.dtype_to_descr(array.dtype)
                np.lib.format.write_array_header_2_0(file, {"descr": kind, "fortran_order": False, "shape": (n, *array.shape[1:])})
            file.write(array.data)

        yield add


def draw(images: Tensor, folder: Path, columns: int | None, names: Sequence[str] | None = None) -> None:
    """Each picture as a file, and grid.png, in which those of one name stand together."""
    bounds: Bounds | None = None if images.dtype == torch.uint8 else spanned(images)
    if images.ndim == 4:
        for i, image in enumerate(images):
            picture = tile(image[None] if bounds is None else levels(image[None], bounds), 1, gap=0, cell=1)
            Image.fromarray(picture.numpy()).save(folder / f"{i:06d}.png")
    shown = images[: POINTS if images.ndim == 2 else PICTURES]
    count, sections = len(shown), None
    if names is not None and images.ndim == 4:
        named = list(names[:count])
        order = sorted(range(count), key=lambda i: (named.index(named[i]), i))
        shown, sections, count = shown[order], [named[i] for i in order], max(map(named.count, named))
    save_png(show(shown, min(count, columns or square(len(shown))), bounds, sections), folder / "grid.png")


def spanned(images: Tensor) -> Bounds:
    """`limits` of all the images, a thousand at a time."""
    low, high = zip(*(limits(chunk) for chunk in images.split(1000)), strict=True)
    return torch.stack([torch.as_tensor(bound) for bound in low]).amin(0), torch.stack([torch.as_tensor(bound) for bound in high]).amax(0)


def square(n: int) -> int:
    """The columns of a picture of n images that is about as wide as high."""
    return max(1, round(n**0.5))


def pack(path: Path, images: Path, **beside: np.ndarray | None) -> None:
    """An npz of the array in the file `images`, which goes, and of those `beside` it by name (None: left out)."""
    with ZipFile(path, "w") as archive:
        archive.write(images, "images.npy")
        for name, array in beside.items():
            if array is not None:
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)
    images.unlink()
