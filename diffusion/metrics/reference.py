"""The statistics of real images: fixed order, no augmentation, made once by all ranks together, kept on disk."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from diffusion.metrics import cache
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Moments
from diffusion.metrics.ranks import rank_and_world, sum_over_ranks


class ImageSet(Protocol):
    """What a metric needs of a data set: uint8 images [n, h, w, c], its name, its split, and its content's sha256."""

    images: np.ndarray
    name: str
    split: str
    sha256: str


def reference_path(imageset: ImageSet, extractor: Extractor, directory: str | Path) -> Path:
    """A file name that says everything the statistics depend on: content and split of the data, and the network."""
    parts = (imageset.name, imageset.split, imageset.sha256[:16], extractor.name, extractor.weights_hash)
    return Path(directory) / "reference" / ("-".join(parts) + ".pt")


def reference_moments(imageset: ImageSet, extractor: Extractor, directory: str | Path) -> Moments:
    """Moments of the features of every image of `imageset`, on the extractor's device; all ranks must call it.

    Read from `directory` if every rank finds them there undamaged; else each rank takes a share, the shares are summed,
    and the first process of each machine that lacked the file writes it. Raises ValueError for a set without images.
    """
    if len(imageset.images) == 0:
        raise ValueError(f"The data set {imageset.name} ({imageset.split}) has no images.")
    path = reference_path(imageset, extractor, directory)
    stored = cache.load(path)
    missing = torch.tensor(int(stored is None), device=extractor.device)
    if not int(sum_over_ranks(missing)):  # the vote: a rank that reads while another computes would never be joined
        return Moments.from_dict(stored, extractor.device)
    rank, world = rank_and_world()
    total = len(imageset.images)
    moments = Moments(extractor.dim, extractor.device)
    for start, stop in batches(total * rank // world, total * (rank + 1) // world, extractor.batch):
        moments.update(extractor(torch.from_numpy(np.array(imageset.images[start:stop]))))
    moments = moments.all_reduce()
    if stored is None and cache.is_first_on_this_machine():
        cache.save(path, moments.to_dict())
    return moments


def batches(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """The interval [start, stop) cut into intervals of at most `size`."""
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def statistics_hash(moments: Moments) -> str:
    """A hash of the statistics themselves; it differs by rounding between machines and numbers of processes."""
    return cache.tensors_hash(moments.to_dict())
