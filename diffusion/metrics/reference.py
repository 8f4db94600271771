"""The statistics of real images: fixed order, no augmentation, made once by all ranks together, kept on disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from diffusion.metrics import cache
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Fitted, Moments
from diffusion.support.hashes import tensors_hash
from diffusion.support.progress import bar
from diffusion.support.ranks import gather_rows, rank_and_world, sum_over_ranks


class RealImages(Protocol):
    """The part of a data set that a metric needs: uint8 images [n, h, w, c], its name, its split, and its content's sha256.

    labels, int64 [n] or None, are the real images' classes."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def sha256(self) -> str: ...


def facts(imageset: RealImages, n: int | None) -> dict[str, Any]:
    """What a passport says of the reference, n of whose images were used (None: the file of statistics does not say)."""
    return {"name": imageset.name, "split": imageset.split, "n": n, "sha256": imageset.sha256, **getattr(imageset, "about", {})}


def reference_path(imageset: RealImages, extractor: Extractor, directory: str | Path, *kind: str) -> Path:
    """A file name that says everything the statistics depend on: content and split of the data, the network, and what was kept."""
    parts = (imageset.name, imageset.split, imageset.sha256[:16], extractor.name, extractor.weights_hash, *kind)
    return Path(directory) / "reference" / ("-".join(parts) + ".pt")


def reference_moments(imageset: RealImages, extractor: Extractor, directory: str | Path, layer: str = "features") -> Moments:
    """Moments of the features (or another `layer`) of every image of `imageset`, on the extractor's device; all ranks must call it.

    Read from `directory` if every rank finds them there undamaged; else each rank takes a share, the shares are summed,
    and the first process of each machine that lacked the file writes it. Raises ValueError for a set without images.
    """

    def make() -> cache.Tensors:
        moments = Moments(extractor.width(layer, imageset.images.shape), extractor.device)
        for images in own_batches(imageset.images, extractor.batch):
            moments.update(extractor.outputs(images)[layer])
        return moments.all_reduce().to_dict()

    require_images(imageset)
    path = reference_path(imageset, extractor, directory, *([] if layer == "features" else [f"{layer}-hwc"]))
    return Moments.from_dict(made_once(path, make, extractor.device), extractor.device)


def reference_features(imageset: RealImages, extractor: Extractor, directory: str | Path, count: int | None = None) -> torch.Tensor:
    """Features [m, d] of `count` images of `imageset`, evenly spaced in its order (all for None or fewer images), in that order.

    They are on the extractor's device; all ranks must call it. Cached like `reference_moments`, unless the extractor is cheap."""
    require_images(imageset)
    total = len(imageset.images)
    m = min(count or total, total)
    chosen = torch.arange(m) * total // m

    def make() -> cache.Tensors:
        rank, world = rank_and_world()
        own = [rows for rows in chosen[m * rank // world : m * (rank + 1) // world].split(extractor.batch) if len(rows)]
        parts = [
            extractor(torch.from_numpy(np.array(imageset.images[rows.numpy()])))
            for rows in bar(own, f"reading {m:,} real images", len(own))
        ]
        rows = torch.cat(parts) if parts else torch.empty(0, extractor.width("features", imageset.images.shape), device=extractor.device)
        return {"features": torch.cat(gather_rows(rows))}

    if extractor.cheap:
        return make()["features"]
    path = reference_path(imageset, extractor, directory, f"features{m}")
    return made_once(path, make, extractor.device)["features"].to(extractor.device)


def made_once(path: Path, make: Callable[[], cache.Tensors], device: torch.device) -> cache.Tensors:
    """The tensors at `path` if every rank finds them there, else `make()`, called by all ranks together and saved once a machine."""
    stored = cache.load_tensors(path)
    missing = int(sum_over_ranks(torch.tensor(int(stored is None), device=device)))
    if stored is not None and not missing:  # the vote: a rank that reads while another computes would never be joined
        return stored
    tensors = make()
    if stored is None and cache.is_first_on_this_machine():
        cache.save_tensors(path, tensors)
    return tensors


def require_images(imageset: RealImages) -> None:
    """Raises ValueError for a set without images."""
    if len(imageset.images) == 0:
        raise ValueError(f"The data set {imageset.name} ({imageset.split}) has no images.")


def own_batches(images: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    """This rank's share, in order and in batches of at most `size`: yields uint8 tensors [b, h, w, c]."""
    rank, world = rank_and_world()
    parts = batches(len(images) * rank // world, len(images) * (rank + 1) // world, size)
    for start, stop in bar(parts, f"reading {len(images):,} real images", len(parts)):
        yield torch.from_numpy(np.array(images[start:stop]))


def batches(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """The interval [start, stop) cut into intervals of at most `size`."""
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def statistics_hash(fitted: Fitted) -> str:
    """A hash of the statistics themselves; it differs by rounding between machines and numbers of processes."""
    return tensors_hash(fitted.to_dict())
