"""What a call of sample.py writes: a folder of each image, a picture of the first ones, all of them as arrays, and what made them; or an
npz, or a zip.

The images are kept on the disk as they are made, so that any number of them takes the memory of one batch. The folder has its name when all
of it is there, and not before."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.generate import Asked, Recipe, finished, trajectories
from diffusion.noise import Between, Seed, SeededNoise
from diffusion.part import Part, part_of, share, together
from diffusion.pictures import CLASSES, Bounds, levels, limits, save_gif, save_image, save_png, show, tile
from diffusion.samplers import State
from diffusion.support.errors import UserError
from diffusion.support.files import atomic, sweep
from diffusion.support.progress import bar
from diffusion.support.ranks import rank_and_world
from diffusion.typing import Rows

log = logging.getLogger(__name__)
OURS = re.compile(r"\d{6,}\.png|grid\.png|samples\.npz|trajectory\.gif|recipe\.json")
RECORD = "recipe.json"
FILES = {  # what is not a folder, by its suffix, and what a file of ours holds: this first, and of these others
    ".npz": ("recipe.npy", re.compile(r"(arr_0|arr_1|prompts|seeds)\.npy")),
    ".zip": (RECORD, re.compile(r"\d{6,}\.png|dataset\.json")),
}
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


def require_own(target: Path, key: str) -> None:
    """Raise UserError unless `target` is free, or a folder that is empty or holds what an earlier call wrote and nothing else, or a file
    that an earlier call wrote: it will be replaced."""
    if not target.exists():
        return
    if suffix_of(target):
        recipe, others = FILES[suffix_of(target)]
        names = names_in(target)
        if recipe not in names or not all(others.fullmatch(name) for name in names - {recipe}):
            raise UserError(f"{key}={target} is not of a call of sample.py; give another name.")
        return
    if not target.is_dir():
        raise UserError(f"{key}={target} is a file; give a folder that is not there yet, or FILE.npz or FILE.zip.")
    there = sorted(path.name for path in target.iterdir())
    foreign = [name for name in there if not OURS.fullmatch(name)]
    if foreign or (there and RECORD not in there):
        raise UserError(f"{key}={target} holds {(foreign or there)[0]}, which is not of a call of sample.py; give another folder.")


def suffix_of(target: Path) -> str:
    """`.npz` or `.zip` for a file of this kind; empty for a folder."""
    return target.suffix.lower() if target.suffix.lower() in FILES else ""


def names_in(path: Path) -> set[str]:
    """The names in a zip file; none of another, or of a folder."""
    try:
        with ZipFile(path) as archive:
            return set(archive.namelist())
    except (BadZipFile, OSError):
        return set()


def write(
    recipe: Recipe,
    seeds: Sequence[Seed],
    cond: Rows | None,
    target: Path,
    made_by: Mapping[str, Any],
    columns: int | None = None,
    trajectory: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Make an image for each seed, with these conditions, by all ranks together, and write them to `target`, a folder, FILE.npz or
    FILE.zip, which takes the place of an earlier one whole. If they are texts, `names` are these, one for each image. A folder holds

    samples.npz     images, labels (the conditions, if any) or prompts, seeds (unless between two), recipe (recipe.json as a string)
    recipe.json     `made_by`, and `nfe`, the calls of the denoiser for an image
    000000.png ...  each image, if they are pictures; floats on one scale
    grid.png        the first 256 pictures in rows of `columns`, those of a text under it, or a scatter of the first 10,000 points
    trajectory.gif  if asked for, the way of the first 64 out of noise, in up to 60 frames

    an npz what samples.npz holds, with the names arr_0 and arr_1 for images and labels, and a zip the pictures and recipe.json. What a call
    has made that is stopped is there when it is made again; see `diffusion.part`."""
    SeededNoise([seeds[0], seeds[-1]], "cpu")  # what is too large is refused now, and not at the last batch
    if suffix_of(target) == ".zip" and len(recipe.shape) != 3:
        raise UserError(f"out={target} would hold pictures, and these are vectors: say out=FOLDER or FILE.npz.")
    sweep(target)
    with part_of(target, made_by, len(seeds), anew=trajectory) as part:
        film = make(recipe, seeds, cond, part, FILMED if trajectory else 0)
        together()
        if rank_and_world()[0]:
            return
        record = json.dumps({**made_by, "nfe": part.nfe()}, indent=1)
        beside = arrays_beside(seeds, cond, names, record)
        with atomic(target) as place:
            if suffix_of(target) == ".npz":
                pack(place, part.array, "arr_0", arr_1=beside.pop("labels"), **beside)
            elif suffix_of(target) == ".zip":
                zipped(place, part.images(), record, beside["labels"])
            else:
                place.mkdir()
                draw(part.images(), place, columns, names)
                if film:
                    few = columns or square(len(film[0]))
                    save_gif([show(frame, few) for frame in film], place / "trajectory.gif")
                (place / RECORD).write_text(record + "\n")
                pack(place / "samples.npz", part.array, "images", **beside)


def arrays_beside(seeds: Sequence[Seed], cond: Rows | None, names: Sequence[str] | None, record: str) -> dict[str, np.ndarray | None]:
    """What an npz holds beside the images; None for what there is not."""
    return {
        "labels": None if cond is None or names is not None else cond[:].numpy(),
        "prompts": None if names is None else np.array(names),
        "seeds": None if isinstance(seeds[0], Between) else np.array(seeds),
        "recipe": np.array(record),
    }


def make(recipe: Recipe, seeds: Sequence[Seed], cond: Rows | None, part: Part, filmed: int) -> list[Tensor]:
    """Make this rank's share of the images that are missing, in batches; the states of the first `filmed` of them as they are seen, a
    batch for each state."""
    asked, film = Asked(recipe.denoiser), list[list[Tensor]]()
    batches = share(part.missing(), recipe.batch_size)
    together()  # all have read what is missing before one adds to what is there
    with recipe.computing():
        for numbers in bar(batches, f"sampling {len(seeds):,} images", len(batches)):
            own, before = [seeds[i] for i in numbers.tolist()], asked.images
            states = trajectories(asked, recipe.sampler, recipe.grid, recipe.shape, own, None if cond is None else cond[numbers])
            state, seen = watched(recipe, states, filmed)
            film = [a + b for a, b in zip(film, seen, strict=True)] if film and seen else film or seen
            filmed = max(0, filmed - len(numbers))
            part.put(numbers, finished(recipe.codec, state), round((asked.images - before) / len(numbers)))
    return [torch.cat(frames) for frames in film]


def watched(recipe: Recipe, states: Iterator[State], rows: int) -> tuple[State, list[list[Tensor]]]:
    """The last of a batch's states, and up to FRAMES of them, evenly chosen, as the codec shows the first `rows` images."""
    every, seen = -(-len(recipe.grid(recipe.denoiser.schedule)) // FRAMES), []
    for i, state in enumerate(states):
        if rows and (i % every == 0 or state.t == 0):
            seen.append([recipe.codec.decode(state.x[:rows]).cpu()])
    return state, seen


def as_pictures(images: Tensor) -> Iterator[tuple[str, Image.Image]]:
    """Each picture and the name of its file; floats on one scale; none of what is no picture."""
    bounds: Bounds | None = None if images.dtype == torch.uint8 else spanned(images)
    for i, image in enumerate(images if images.ndim == 4 else ()):
        picture = tile(image[None] if bounds is None else levels(image[None], bounds), 1, gap=0, cell=1)
        yield f"{i:06d}.png", Image.fromarray(picture.numpy())


def zipped(path: Path, images: Tensor, record: str, labels: np.ndarray | None) -> None:
    """A zip of each picture, of recipe.json, and of their classes in a dataset.json, as EDM's dataset tool writes it."""
    with ZipFile(path, "w") as archive:
        archive.writestr(RECORD, record + "\n")
        names = []
        for name, picture in as_pictures(images):
            names.append(name)
            with archive.open(name, "w") as file:
                (picture.convert("L") if images.shape[-1] == 1 else picture).save(file, "PNG")
        if labels is not None:
            archive.writestr(CLASSES, json.dumps({"labels": [*zip(names, labels.tolist(), strict=True)]}))


def draw(images: Tensor, folder: Path, columns: int | None, names: Sequence[str] | None = None) -> None:
    """Each picture as a file, and grid.png, in which those of one name stand together."""
    for name, picture in as_pictures(images):
        save_image(picture, folder / name)
    bounds: Bounds | None = None if images.dtype == torch.uint8 else spanned(images)
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


def pack(path: Path, images: Path, name: str, **beside: np.ndarray | None) -> None:
    """An npz of the array in the file `images`, under this name, and of those `beside` it by theirs (None: left out)."""
    with ZipFile(path, "w") as archive:
        archive.write(images, f"{name}.npy")
        for key, array in beside.items():
            if array is not None:
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, array)
