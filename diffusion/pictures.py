"""Pictures of images: grids, PNG, GIF."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion.support.files import atomic

CELL = 32  # smaller images are enlarged by a whole factor to about this many pixels, so that one can see them


def tile(images: Tensor, columns: int, gap: int = 2, cell: int = CELL) -> Tensor:
    """uint8 [n, h, w, c] in rows of `columns`, row by row -> one uint8 picture [H, W, 3], white between them."""
    n, h, w, c = images.shape
    factor = max(1, cell // h)
    images = images.expand(n, h, w, 3) if c == 1 else images[..., :3]
    images = images.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    h, w, rows = h * factor + gap, w * factor + gap, -(-n // columns)
    picture = torch.full((rows * h + gap, columns * w + gap, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * h, gap + i % columns * w
        picture[y : y + h - gap, x : x + w - gap] = image
    return picture


def save_png(picture: Tensor, path: str | Path) -> Path:
    """Write a uint8 picture [h, w, 3] as PNG, whole or not at all."""
    with atomic(path) as temporary:
        Image.fromarray(picture.numpy()).save(temporary, format="PNG")
    return Path(path)


def save_gif(pictures: Sequence[Tensor], path: str | Path, seconds: float = 4.0) -> Path:
    """Write uint8 pictures [h, w, 3] as an endless GIF of about `seconds`, resting on the last."""
    frames = [Image.fromarray(picture.numpy()) for picture in pictures]
    each = max(20, int(1000 * seconds / len(frames)))
    with atomic(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=[each] * (len(frames) - 1) + [1500], loop=0
        )
    return Path(path)
