"""What networks made of images that were measured, kept on the disk, so that a further metric of the same images calls none of them."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from diffusion.metrics import Extractor, FeatureMetric, Features, FeatureStore, Metric
from diffusion.part import ARRAY, CALLS, Part, kept_within, together, whole, writing
from diffusion.passport import source_hash
from diffusion.support.files import PLACES, writable, writing_in
from diffusion.support.ranks import rank_and_world

log = logging.getLogger(__name__)
GIGABYTE = 10**9
SUMS = "sums"  # of the rows of a layer


@dataclass(frozen=True)
class KeptFeatures:
    """Features of images, in the folder `place`, of at most `gigabytes`: a `Book` for each network, of the images of this `cell`, which is
    all that they depend on. Those of other cells are there too; what was longest unused goes first where there is too little room.

    Raises UserError for a `place` that is a link out of its folder, and for a book of it that is: nothing is written or removed there."""

    place: Path
    cell: Mapping[str, Any]
    gigabytes: float

    def __post_init__(self) -> None:
        if self.gigabytes:
            with writing_in([*(PLACES.get() or ()), self.place.parent]):
                writable(self.place)

    def path(self, extractor: Extractor) -> Path:
        """The folder of a network's features; that of another version of the code has another name."""
        made_by = {"cell": self.cell, "extractor": extractor.describe(), "code": source_hash()}
        return kept_within(self.place / hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()[:12])

    def mend(self, extractors: Iterable[Extractor]) -> None:
        """Remove the books of these networks that cannot be read; on all ranks, by the first."""
        for book in map(self.path, extractors) if rank_and_world()[0] == 0 else ():
            try:
                for array in book.glob(f"*/{ARRAY}"):
                    rows = np.load(array, mmap_mode="r") if array.is_file() else None
                    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype != np.float32:
                        raise ValueError(f"{array} holds something else")
            except (ValueError, OSError, EOFError):
                log.warning("The features in %s are damaged, and made again.", book)
                shutil.rmtree(book, ignore_errors=True)
        together()

    def tidy(self) -> None:
        """Remove what is over the room, the longest unused first; on all ranks, by the first."""
        together()
        room = self.gigabytes * GIGABYTE
        books = [book for book in self.place.glob("*") if any(book.glob("*/calls"))] if rank_and_world()[0] == 0 else []
        for book in sorted(books, key=lambda book: book.stat().st_mtime, reverse=True):
            room -= sum(file.stat().st_size for file in book.rglob("*") if file.is_file())
            if room < 0:
                shutil.rmtree(book, ignore_errors=True)


class Books:
    """The features of the images that these metrics will be given: a `Book` for each of their networks, by the id of its store."""

    def __init__(self, kept: KeptFeatures | None, metrics: Collection[Metric]) -> None:
        self.kept, self.metrics = kept if kept and kept.gigabytes else None, metrics
        wanted: dict[int, tuple[FeatureStore, int]] = {}
        for metric in metrics if self.kept else ():
            if isinstance(metric, FeatureMetric) and not metric.extractor.cheap:
                store, n = wanted.get(id(metric.store), (metric.store, 0))
                wanted[id(store)] = store, max(n, metric.n)
        if self.kept:
            self.kept.mend(store.extractor for store, _ in wanted.values())
        self.books = {key: (store, Book(self.kept, store.extractor, n)) for key, (store, n) in wanted.items()} if self.kept else {}

    def known(self, indices: Tensor) -> tuple[dict[int, Features], int] | None:
        """What is kept of the images with these numbers, in order, and the calls of the denoiser that each took; None unless it is all that
        the metrics need of them."""
        asking = [metric for metric in self.metrics if metric.n > int(indices[0])]
        if not all(isinstance(metric, FeatureMetric) and metric.of_features and id(metric.store) in self.books for metric in asking):
            return None
        asked = {key: book for key, (_, book) in self.books.items() if book.asked > int(indices[0])}
        found = {key: book.known(indices[indices < book.asked]) for key, book in asked.items()}
        rows = {key: value[0] for key, value in found.items() if value is not None}
        return (rows, max(value[1] for value in found.values() if value)) if rows and len(rows) == len(found) else None

    def put(self, indices: Tensor, images: Tensor, calls: int) -> None:
        """Keep what the networks have just made of the images with these numbers."""
        for store, book in self.books.values():
            own = indices[indices < book.asked]
            if len(own) and book.open:
                book.put(own, store(images[: len(own)]), calls)

    def tidy(self) -> None:
        """See `KeptFeatures.tidy`."""
        if self.kept:
            self.kept.tidy()


class Layer(Part):
    """What one layer of a network made of images: a `Part` of rows float32 [n, d], each with a checksum of its numbers, its calls and the
    layer's name. A row that was damaged is one that is missing."""

    def made(self) -> np.ndarray:
        """As a `Part`'s, of the rows that are whole."""
        calls, kept = super().made(), np.zeros(self.n, CALLS)
        if (self.place / SUMS).is_file() and self.array.is_file():
            sums, rows = np.fromfile(self.place / SUMS, np.uint32, self.n), np.load(self.array, mmap_mode="r")
            for i in np.flatnonzero(calls[: min(len(sums), len(rows))]):
                kept[i] = calls[i] if sums[i] == self.sum(rows[i], calls[i]) else 0
        return kept

    def put(self, numbers: Tensor, images: Tensor, calls: int) -> None:
        """As a `Part`."""
        with writing(self.place / SUMS) as file:
            for number, row in zip(numbers.tolist(), np.ascontiguousarray(images.numpy()), strict=True):
                whole(os.pwrite(file, np.uint32(self.sum(row, calls + 1)).tobytes(), number * 4), 4)
        super().put(numbers, images, calls)

    def sum(self, row: np.ndarray, count: int) -> int:
        """The CRC of a row that has this entry in `calls`."""
        return crc32(row.tobytes(), crc32(f"{self.place.name} {count} {row.dtype}".encode()))


class Book:
    """What one network made of images 0 .. n - 1: a `Layer` for each of its layers, float32 [n, d].

    Of them `asked` are asked for now. Where the disk does not take it, or there is no room for it, nothing is kept, and the measuring goes
    on."""

    def __init__(self, kept: KeptFeatures, extractor: Extractor, asked: int) -> None:
        self.place, self.asked, self.gigabytes, self.open = kept.path(extractor), asked, kept.gigabytes, True
        places = [self.place / layer for layer in extractor.layers if (self.place / layer / ARRAY).is_file()]
        self.n = max([asked, *(len(np.load(place / ARRAY, mmap_mode="r")) for place in places)])
        self.layers = {place.name: Layer(kept_within(place), self.n) for place in places}
        made = [torch.from_numpy(part.made()) for part in self.layers.values()]
        self.made = torch.stack(made).amin(0) if len(made) == len(extractor.layers) else torch.zeros(self.n, dtype=torch.int32)
        if made:
            self.place.touch()  # it is used

    def known(self, numbers: Tensor) -> tuple[Features, int] | None:
        """The features of the images with these numbers, and the calls of the denoiser that each took; None unless all are there."""
        calls = self.made[numbers]
        if not len(numbers) or not calls.all():
            return None
        return Features({layer: part.images()[numbers] for layer, part in self.layers.items()}), round(calls.double().mean().item()) - 1

    def put(self, numbers: Tensor, layers: Mapping[str, Tensor], calls: int) -> None:
        """Keep the layers [b, d] of the images with these numbers."""
        size = self.n * sum(rows[0].numel() for rows in layers.values()) * 4 / GIGABYTE
        if size > self.gigabytes:
            log.info("%.1f GB of features are not kept, since keep_features=%g.", size, self.gigabytes)
            self.open = False
        try:
            for layer, rows in layers.items() if self.open else ():
                if layer not in self.layers:
                    kept_within(self.place / layer).mkdir(parents=True, exist_ok=True)
                    self.layers[layer] = Layer(self.place / layer, self.n)
                self.layers[layer].put(numbers, rows.float().cpu(), calls)
        except OSError as error:
            log.warning("The features of these images are not kept: %s.", error)
            self.open = False
