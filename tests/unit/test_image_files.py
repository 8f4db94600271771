"""One reader of pictures: an image folder and an edit see the same of a file, and a hostile file is one sentence."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion.data import ImageFolder
from diffusion.editing import picture
from diffusion.pictures import read_image
from diffusion.support.errors import UserError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def transparent(mode: str) -> Image.Image:
    """Rows of alpha 0, 128 and 255 over red, or over what the mode makes of it."""
    image = Image.new("RGBA", (8, 9), (255, 0, 0, 255))
    for row, alpha in enumerate((0, 128, 255)):
        image.paste((255, 0, 0, alpha), (0, 3 * row, 8, 3 * row + 3))
    return image.convert(mode)


@pytest.fixture
def both(tmp_path):
    """`both(channels)`: the picture in `tmp_path/images/a.png`, 8 x 8, as the folder and as an edit have it."""
    (tmp_path / "images").mkdir()

    def seen(channels=3):
        folder = ImageFolder(tmp_path / "images", tmp_path / "cache", image_size=8, channels=channels)
        return folder.load().images[0], picture(str(tmp_path / "images" / "a.png"), "image", channels, (8, 8)).numpy()

    return seen


@pytest.mark.parametrize("mode, colour", [("RGBA", (255, 127, 127)), ("LA", (165, 165, 165))])
def test_what_is_transparent_shows_white(tmp_path, mode, colour):
    transparent(mode).save(tmp_path / "a.png")
    pixels = np.asarray(read_image(tmp_path / "a.png", 3)).astype(int)
    assert (pixels[:3] == 255).all() and np.abs(pixels[3:6] - colour).max() <= 1
    assert np.abs(pixels[6:] - ((255, 0, 0) if mode == "RGBA" else 76)).max() <= 1


def test_a_transparent_shade_of_a_palette_shows_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 2))
    image.save(tmp_path / "a.png", transparency=0)
    pixels = np.asarray(read_image(tmp_path / "a.png", 3))
    assert (pixels[:2] == 255).all() and (pixels[2:] == (0, 0, 255)).all()


@pytest.mark.parametrize("kind", ["exif", "16 bits", "alpha", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folders_and_edits_see_the_same(both, tmp_path, kind, channels):
    path, exif, ramp = tmp_path / "images" / "a.png", Image.Exif(), Image.fromarray(RAMP)
    exif[0x0112] = 6  # a quarter turn
    deep = Image.fromarray(RAMP.astype(np.uint16) * 256 + 255)
    alpha = Image.merge("LA", (Image.new("L", (8, 8)), ramp))
    image, expected = {
        "exif": (ramp, np.rot90(RAMP, -1)),
        "16 bits": (deep, RAMP),
        "alpha": (alpha, 255 - RAMP),
        "grey": (ramp, RAMP),
    }[kind]
    image.save(path, **({"exif": exif} if kind == "exif" else {}))
    folder, edit = both(channels)
    assert np.array_equal(folder, edit) and np.array_equal(edit, np.repeat(expected[:, :, None], channels, 2))


def test_16_bits_of_colour_and_of_grey_are_alike(tmp_path):
    """Pillow writes no 16-bit colours, so that file is put together here: 2 x 1 pixels, each channel of which is 40,000, then 255."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", *[40000] * 3, *[255] * 3)))
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    Image.fromarray(np.array([[40000, 255]], np.uint16)).save(tmp_path / "grey.png")
    colour, grey = (np.asarray(read_image(tmp_path / name, 3)) for name in ("colour.png", "grey.png"))
    assert np.array_equal(colour, grey) and colour[0, :, 0].tolist() == [156, 0]


def damaged() -> dict[str, bytes]:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    jpeg, gif, eps = io.BytesIO(), io.BytesIO(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    Image.new("RGB", (9, 9)).save(gif, "GIF")
    flipped = bytearray(whole.getvalue())
    flipped[len(flipped) // 2] ^= 255
    bomb = bytearray(whole.getvalue())
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    return {
        "empty": b"",
        "text": b"no picture",
        "cut": whole.getvalue()[: len(whole.getvalue()) // 2],
        "cut in its head": whole.getvalue()[:20],
        "cut jpeg": jpeg.getvalue()[:-300],
        "a bit flipped": bytes(flipped),
        "a bomb": bytes(bomb),
        "another format": gif.getvalue(),
        "a program": eps,
    }


@pytest.mark.parametrize("content", damaged().values(), ids=damaged())
def test_a_damaged_picture_is_one_sentence(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_image(tmp_path / "a.png", 3)
    assert str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^edit\.image=.*a\.png cannot be read as a picture: .*\.$"):
        picture(str(tmp_path / "a.png"), "image", 3, (8, 8))


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("pipe.png", "not a file"), (".", "not a file"), ("x.png", "no such file")):
        with pytest.raises(ValueError, match=reason):
            read_image(tmp_path / name, 3)


def test_a_wrong_suffix_is_no_harm(tmp_path):
    Image.new("RGB", (4, 4), (0, 0, 255)).save(tmp_path / "a.jpg", "PNG")
    assert (np.asarray(read_image(tmp_path / "a.jpg", 3)) == (0, 0, 255)).all()
