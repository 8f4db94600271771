"""Any folder of images: classes, cropping, what makes another cache and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from diffusion.data import ImageFolder
from diffusion.data.image_folder import cover
from diffusion.support.errors import UserError


def save(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    save(root / "dog" / "b.png", (255, 0, 0))
    save(root / "dog" / "a.bmp", (0, 255, 0))
    save(root / "cat" / "deep" / "c.webp", (0, 0, 255))
    save(root / "cat" / "d.JPEG", (255, 255, 255))
    save(root / "cat" / ".hidden.png", (9, 9, 9))
    (root / "cat" / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def dataset(folder, tmp_path):
    return lambda **options: ImageFolder(folder, tmp_path / "cache", **{"image_size": 8, "num_classes": 2} | options)


def test_classes_are_the_sorted_subfolders(dataset):
    images = dataset().load()
    assert dataset().classes == ["cat", "dog"] and images.labels.tolist() == [0, 0, 1, 1]
    assert images.images.shape == (4, 8, 8, 3)
    expected = [[255, 255, 255], [0, 0, 255], [0, 255, 0], [255, 0, 0]]  # cat/d, cat/deep/c, dog/a, dog/b
    assert np.abs(images.images.astype(int) - np.array(expected)[:, None, None]).max() <= 3  # JPEG and WebP lose a little


def test_without_labels(dataset, folder, tmp_path):
    assert dataset(labelled=False, num_classes=0).load().labels is None
    flat = ImageFolder(folder / "dog", tmp_path / "cache", image_size=8).load()
    assert flat.labels is None and flat.num_classes == 0 and len(flat) == 2


def test_grey(dataset):
    images = dataset(channels=1).load().images
    assert images.shape == (4, 8, 8, 1) and abs(int(images[3, 0, 0, 0]) - 76) <= 1  # red's luma is 0.299 * 255


def test_cover_crops_the_centre():
    """Left third red, middle green, right blue, in landscape: the middle square is green; in portrait likewise."""
    stripes = np.zeros((40, 120, 3), np.uint8)
    for i in range(3):
        stripes[:, 40 * i : 40 * (i + 1), i] = 255
    for image in (stripes, stripes.transpose(1, 0, 2)):
        square = np.asarray(cover(Image.fromarray(image), 10, 10))
        assert square.shape == (10, 10, 3)
        assert (square[2:-2, 2:-2] == (0, 255, 0)).all()


def test_cover_does_not_alias():
    """A checkerboard of single pixels shrinks to its mean, not to black, white or a moire."""
    board = np.indices((512, 700)).sum(0) % 2 * 255
    square = np.asarray(cover(Image.fromarray(board.astype(np.uint8)), 60, 60)).astype(int)
    assert np.abs(square - 127.5).max() <= 1


def test_an_odd_size_keeps_the_whole_shorter_side():
    assert cover(Image.new("RGB", (101, 257)), 32, 32).size == (32, 32)
    assert cover(Image.new("RGB", (5, 9)), 32, 32).size == (32, 32)


def test_cover_makes_rectangles_of_any_image():
    """Left third red, middle green, right blue: a wide cut of a square keeps all three, a tall one the middle alone."""
    stripes = np.zeros((120, 120, 3), np.uint8)
    for i in range(3):
        stripes[:, 40 * i : 40 * (i + 1), i] = 255
    wide, tall = (np.asarray(cover(Image.fromarray(stripes), *size)) for size in ((10, 30), (30, 10)))
    assert wide.shape == (10, 30, 3) and tall.shape == (30, 10, 3)
    assert [wide[5, x].argmax() for x in (4, 15, 25)] == [0, 1, 2]
    assert (tall[:, 2:-2] == (0, 255, 0)).all()
    for size in ((1, 1), (7, 300), (300, 7), (64, 128), (129, 63)):
        assert cover(Image.new("RGB", (97, 53)), *size).size == size[::-1]


def test_cover_takes_the_pixels_that_are_there():
    """Of an image of twice the height and width that is asked for, each pixel is the mean of four, and nothing is cut off."""
    image = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    expected = image.reshape(8, 2, 20, 2, 3).astype(int).sum((1, 3)) / 4
    assert np.abs(np.asarray(cover(Image.fromarray(image), 8, 20)) - expected).max() <= 1  # it rounds after each direction


def test_a_rectangular_folder(dataset):
    images = dataset(image_size=[6, 11]).load()
    assert images.images.shape == (4, 6, 11, 3) and dataset(image_size=[6, 11]).shape == (6, 11, 3)
    assert dataset(image_size=[8, 8]).load().sha256 == dataset().load().sha256


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.png", exif=exif)
    pixels = ImageFolder(tmp_path / "images", tmp_path / "cache", image_size=16).load().images[0]
    assert (pixels[:8] == 0).all() and (pixels[8:] == 255).all()


def test_any_change_of_the_folder_makes_another_cache(dataset, folder):
    seen = {dataset().load().sha256}
    save(folder / "dog" / "a.bmp", (255, 0, 1))  # the same size on disk as before
    os.utime(folder / "dog" / "a.bmp", (1, 1))
    seen.add(dataset().load().sha256)
    save(folder / "dog" / "z.png", (1, 2, 3))
    seen.add(dataset().load().sha256)
    seen.add(dataset(image_size=9).load().sha256)
    assert len(seen) == 4


def test_16_bit_pixels_are_refused_and_not_clipped(dataset, folder):
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(folder / "dog" / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png cannot be read as an image \(its pixels are not 8-bit"):
        dataset().load()


@pytest.mark.parametrize("content", [b"not an image", b"", None])
def test_a_broken_image_is_named_and_leaves_no_cache(dataset, folder, tmp_path, content):
    path = folder / "dog" / "broken.png"
    whole = (folder / "dog" / "b.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"dog/broken\.png cannot be read as an image .*take it out"):
        dataset().load()
    assert not [entry for entry in (tmp_path / "cache").iterdir() if not entry.name.endswith(".lock")]


def test_refusals(dataset, folder, tmp_path):
    with pytest.raises(UserError, match=r"num_classes 2, which dataset\.num_classes=3 contradicts"):
        dataset(num_classes=3).load()
    assert dataset(num_classes=0).load().labels is None
    with pytest.raises(UserError, match=r"There is no folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere", tmp_path).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        ImageFolder(tmp_path / "empty", tmp_path).load()
    with pytest.raises(UserError, match=r"no split 'test'"):
        dataset(split="test")
    with pytest.raises(UserError, match=r"channels=4"):
        dataset(channels=4)
    save(folder / "loose.png", (0, 0, 0))
    with pytest.raises(UserError, match=r"beside its class folders \(such as loose\.png\)"):
        dataset().load()
