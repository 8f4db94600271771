"""Pictures: those of files, which anybody may have made, and those of what data sets hold and models make: grids of images, scatters of
points; PNG, GIF."""

import math
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import pad

from diffusion.support.commands import as_text
from diffusion.support.files import atomic

CLASSES = "dataset.json"  # beside pictures, as EDM's dataset tool writes it: {"labels": [[name of a picture, class], ...]}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}  # by suffix; no other decoder is asked
MODES = {1: "L", 3: "RGB"}
CELL = 32  # smaller images are enlarged by a whole factor to about this many pixels, so that one can see them
INK = (31, 97, 180)  # the colour of a dot
GREY, PALE = (120, 120, 120), (222, 222, 222)  # the colours of the frame and of the lines through zero

Bounds = tuple[Tensor | float, Tensor | float]
"""(lowest, highest): two numbers for pictures; for points two numbers, or two for each axis."""


def show(batch: Tensor, columns: int, bounds: Bounds | None = None, names: Sequence[str] | None = None) -> Tensor:
    """What a batch of items as the data hold them looks like, uint8 [H, W, 3]: pictures in a grid, vectors [n, d] as a scatter. With
    `names`, one for each, pictures of the same one that follow each other stand under it.

    uint8 pictures [n, h, w, c] are shown as they are, and floats so that `bounds` become black and white; the batch's own, `limits`,
    if None. Pictures [n, h, w] have one channel. Several batches are shown on one scale by giving the bounds of one to all. Raises
    ValueError for items that are neither pictures nor vectors."""
    if batch.ndim == 2:
        return scatter(batch, bounds)
    if batch.ndim == 3:
        batch = batch[..., None]
    if batch.ndim != 4:
        raise ValueError(f"Items of shape {list(batch.shape[1:])} are no pictures and no vectors: nothing here can draw them.")
    pictures = batch if batch.dtype == torch.uint8 else levels(batch, bounds)
    if names is None:
        return tile(pictures, columns)
    groups = [(name, len(list(group))) for name, group in groupby(names)]
    parts = pictures.split([count for _, count in groups])
    return torch.cat([part for (name, _), each in zip(groups, parts, strict=True) for part in titled(tile(each, columns), name)])


def limits(batch: Tensor) -> Bounds:
    """The lowest and the highest of a batch's finite numbers: of each axis for vectors [n, d], of all for pictures; 0 and 1 for none."""
    batch = batch.double()
    numbers = batch[batch.isfinite().all(1)] if batch.ndim == 2 else batch[batch.isfinite()][:, None]
    if len(numbers) == 0:
        return 0.0, 1.0
    return (numbers.amin(0), numbers.amax(0)) if batch.ndim == 2 else (numbers.min().item(), numbers.max().item())


def levels(pictures: Tensor, bounds: Bounds | None = None) -> Tensor:
    """Float pictures as uint8: the lower bound, or the lowest number, becomes 0, and the higher 255. NaN becomes 0."""
    low, high = limits(pictures) if bounds is None else bounds
    scaled = (pictures.double().cpu() - low) / max(high - low, 1e-12)
    return (scaled.nan_to_num(0) * 255).round().clamp(0, 255).to(torch.uint8)


def tile(images: Tensor, columns: int, gap: int = 2, cell: int = CELL) -> Tensor:
    """uint8 [n, h, w, c] in rows of `columns`, row by row -> one uint8 picture [H, W, 3], white between them.

    One channel is grey; two are red and green; of more than three the first three are red, green and blue."""
    n, h, w, _ = images.shape
    factor = max(1, cell // math.isqrt(h * w))
    images = coloured(images).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    h, w, rows = h * factor + gap, w * factor + gap, -(-n // columns)
    picture = torch.full((rows * h + gap, columns * w + gap, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * h, gap + i % columns * w
        picture[y : y + h - gap, x : x + w - gap] = image
    return picture


def titled(picture: Tensor, title: str, size: int = 11) -> list[Tensor]:
    """[a strip uint8 [h, W, 3] with the title in black on white, in up to three lines, the picture uint8 [H, W, 3]]."""
    font, width = ImageFont.load_default(size), picture.shape[1]
    lines = [""]
    for letter in " ".join(title.split()):
        wide = font.getlength(lines[-1] + letter) > width - 4
        left, space, right = lines[-1].rpartition(" ")
        if wide and letter == " ":
            lines.append("")
        elif wide:  # the word that is being written goes on in the next line, unless it is as long as the line
            lines[-1:] = [left, right + letter] if space else [lines[-1], letter]
        else:
            lines[-1] += letter
    if len(lines) > 3:
        lines[2:] = [lines[2][:-1] + "…"]
    strip = Image.new("RGB", (width, len(lines) * (size + 3) + 2), "white")
    ImageDraw.Draw(strip).multiline_text((2, 1), "\n".join(lines), "black", font, spacing=3)
    return [torch.from_numpy(np.array(strip)), picture]


def coloured(images: Tensor) -> Tensor:
    """[n, h, w, c] -> [n, h, w, 3]: one channel three times, or the first three, of which a missing one is 0."""
    if images.shape[-1] == 1:
        return images.expand(*images.shape[:-1], 3)
    return pad(images[..., :3], (0, 3 - min(3, images.shape[-1])))


def scatter(points: Tensor, bounds: Bounds | None = None, size: int = 400, radius: float | None = None, opacity: float = 0.5) -> Tensor:
    """Points [n, d] -> one uint8 picture [size, size, 3]: the first coordinate to the right, the second upwards (0 where d = 1).

    Each axis runs from its lower bound to its higher, the points' own `limits` if None, with a margin of a twentieth of the picture.
    A dot is a disc of this radius in pixels, larger if None where points are few, with a smooth edge; where dots overlap they are
    darker, so that one sees a density. Pale lines stand where a coordinate is 0. Points outside the picture, and those that are not
    finite, are not drawn."""
    points = pad(points.detach().double().cpu()[:, :2], (0, 2 - min(2, points.shape[1])))
    low, high = (torch.as_tensor(bound).double().cpu().reshape(-1)[:2].expand(2) for bound in bounds or limits(points))
    low, high = torch.where(high > low, low, low - 0.5), torch.where(high > low, high, high + 0.5)
    margin = size // 20
    scale = (size - 1 - 2 * margin) / (high - low)

    def place(coordinates: Tensor) -> Tensor:
        """[n, 2] (x, y) in the data's units -> [n, 2] (row, column) in pixels."""
        x, y = ((coordinates - low) * scale + margin).unbind(-1)
        return torch.stack([size - 1 - y, x], -1)

    picture = torch.full((size, size, 3), 255.0, dtype=torch.float64)
    row, column = place(torch.zeros(2, dtype=torch.float64)).round().long().tolist()
    if 0 <= row < size:
        picture[row] = torch.tensor(PALE, dtype=torch.float64)
    if 0 <= column < size:
        picture[:, column] = torch.tensor(PALE, dtype=torch.float64)
    radius = min(4.0, max(2.0, 60 / math.sqrt(len(points) + 1))) if radius is None else radius
    clear = transmittance(place(points[points.isfinite().all(1)]), size, radius, opacity)[..., None]
    picture = picture * clear + torch.tensor(INK, dtype=torch.float64) * (1 - clear)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        edge[:] = torch.tensor(GREY, dtype=torch.float64)
    return picture.round().to(torch.uint8)


def transmittance(places: Tensor, size: int, radius: float, opacity: float) -> Tensor:
    """What is left of the light, [size, size], behind discs at `places` [n, 2] (row, column): the product of 1 - opacity x coverage."""
    reach = math.ceil(radius)
    steps = torch.arange(-reach, reach + 1)
    around = torch.cartesian_prod(steps, steps)  # [k, 2]
    inside = ((places > -1 - reach) & (places < size + reach)).all(1)
    pixels = places[inside].round().long()[:, None] + around  # [n, k, 2]
    distance = (pixels - places[inside][:, None]).square().sum(-1).sqrt()
    coverage = (radius + 0.5 - distance).clamp(0, 1)
    drawn = ((pixels >= 0) & (pixels < size)).all(-1)
    index = pixels[drawn] @ torch.tensor([size, 1])
    dark = torch.zeros(size * size, dtype=torch.float64).index_add_(0, index, (-opacity * coverage[drawn]).log1p())
    return dark.exp().reshape(size, size)


def save_png(picture: Tensor, path: str | Path) -> Path:
    """Write a uint8 picture [h, w, 3] as PNG, whole or not at all."""
    with atomic(path) as temporary:
        save_image(Image.fromarray(picture.numpy()), temporary)
    return Path(path)


def save_image(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, which says the command that made it, and the file's name."""
    texts = PngInfo()
    for key, text in as_text(file=path.name).items():
        texts.add_text(key, text)
    picture.save(path, format="PNG", pnginfo=texts)


def save_gif(pictures: Sequence[Tensor], path: str | Path, seconds: float = 4.0) -> Path:
    """Write uint8 pictures [h, w, 3] as an endless GIF of about `seconds`, resting on the last."""
    frames = [Image.fromarray(picture.numpy()) for picture in pictures]
    each = max(20, int(1000 * seconds / len(frames)))
    with atomic(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=[each] * (len(frames) - 1) + [1500], loop=0
        )
    return Path(path)


def read_image(path: str | Path | BytesIO, channels: int) -> Image.Image:
    """The picture of a file, or of its bytes (the first one of an animation), of 8 bits, grey (channels=1) or RGB (channels=3), turned
    upright by its EXIF tag.

    What is transparent shows white: of a colour c with alpha a, a c + (1 - a) 255 is seen. Of 16 bits the upper 8 are taken, of grey as
    Pillow does of colours. A file is told by its content, which a wrong suffix does not change.

    Raises ValueError, whose text is the reason, for what is no regular file (a pipe is not opened, which would wait), a picture of
    another format, a damaged one, and one whose size is that of a decompression bomb."""
    if not isinstance(path, BytesIO) and not Path(path).is_file():
        raise ValueError("it is not a file" if Path(path).exists() else "there is no such file")
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            return of_8_bits(ImageOps.exif_transpose(image), MODES[channels])
    except UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(sorted(set(FORMATS.values())))}") from None
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(str(error) or type(error).__name__) from error


def of_8_bits(image: Image.Image, mode: str) -> Image.Image:
    """The picture in this mode, on white. Raises ValueError for pixels of more than 16 bits."""
    if image.mode.startswith("I;16") and not image.has_transparency_data:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":  # converting these to 8 bits clips them without a word
        raise ValueError(f"its pixels are not of 8 bits but {image.mode}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
