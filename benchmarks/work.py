"""What the rows share: the device, the sizes, a folder for what they write, the pictures that are trained on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .sizes import Sizes


@dataclass(frozen=True)
class Bench:
    """`folder` is a temporary one; nothing is written elsewhere."""

    device: str
    sizes: Sizes
    folder: Path

    def place(self, *parts: object) -> Path:
        """A folder of a row's own."""
        path = self.folder.joinpath(*map(str, parts))
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def pictures(self) -> Path:
        """Where the pictures are once they are `drawn`."""
        return self.folder / "pictures"

    def draw(self) -> None:
        """Make the folder of PNGs, and the same as uint8 [n, h, w, 3] in a file beside it, once: smoothed noise, which compresses a bit."""
        folder, n, size = self.pictures, self.sizes.images, self.sizes.image_size
        if folder.exists():
            return
        folder.mkdir()
        coarse = np.random.default_rng(0).integers(0, 256, (n, size // 4, size // 4, 3), dtype=np.uint8)
        images = np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse])
        np.save(folder.with_suffix(".npy"), images)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:05d}.png")

    def seconds(self, work: Callable[[], object]) -> float:
        """How long it takes, until the device has done it."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
