"""Any folder of images: classes, cropping, what makes another cache and what is refused."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from diffusion.data import ImageFolder
from diffusion.data.image_folder import cover, listed
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
    assert dataset(num_classes=None).load().labels.tolist() == [0, 0, 1, 1]  # as the command has it by default
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


@pytest.mark.parametrize("content", [b"not an image", b"", None])
def test_a_broken_image_is_named_and_leaves_no_cache(dataset, folder, tmp_path, content):
    path = folder / "dog" / "broken.png"
    whole = (folder / "dog" / "b.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"^1 of the 5 images in .* cannot be read: dog/broken\.png \(.*\); repair them or take them out"):
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


def test_pictures_beside_class_folders_are_read_without_labels(dataset, folder):
    save(folder / "loose.png", (0, 0, 0))
    for words in ({"num_classes": 0}, {"labelled": False, "num_classes": None}):
        images = dataset(**words).load()
        assert len(images) == 5 and images.labels is None and images.num_classes == 0


def test_all_broken_images_are_named_at_once(dataset, folder):
    for i in range(13):
        (folder / "dog" / f"x{i:02}.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        dataset().load()
    said = str(caught.value)
    assert said.startswith("13 of the 17 images in ") and "dog/x09.png (its content is none of BMP, JPEG, PNG, WEBP) and 3 more; " in said
    assert "x10" not in said and "\n" not in said


def test_what_is_left_out_is_counted_and_said(dataset, folder, caplog):
    """A pipe is not opened, which would wait for ever; a link that leads back makes no copies; what Pillow knows besides is not asked."""
    os.mkfifo(folder / "dog" / "pipe.png")
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere")
    (folder / "dog" / "itself.png").symlink_to("itself.png")
    (folder / "dog" / "root").symlink_to(folder)
    (folder / "cat" / "dogs").symlink_to(folder / "dog")
    Image.new("RGB", (9, 9)).save(folder / "dog" / "old.gif")
    with caplog.at_level("INFO"):
        assert len(dataset().load()) == 4
        dataset().load()
    said = (
        "2 broken links (dog/gone.png, dog/itself.png), 2 links to a folder that is read already (dog/root, cat/dogs), "
        "1 hidden file or folder (cat/.hidden.png), 1 .txt file (cat/notes.txt), 1 pipe or device (dog/pipe.png), 1 .gif file (dog/old.gif)"
    )
    (line,) = [record.getMessage() for record in caplog.records if str(folder) in record.getMessage()]
    assert line.startswith(f"{folder} has 4 images, 2 classes, its sub-folders; left out: ")
    assert sorted(re.findall(r"\d .*?\)", line.partition("left out: ")[2])) == sorted(re.findall(r"\d .*?\)", said))


def test_of_many_files_that_are_left_out_two_are_named(dataset, folder, caplog):
    for i in range(3):
        (folder / "dog" / f"x{i}.txt").write_text("no image")
    (folder / "dog" / "README").write_text("no image")
    with caplog.at_level("INFO"):
        dataset().load()
    assert "; left out: 4 .txt files (dog/x0.txt, dog/x1.txt, ...), 1 file without a suffix (dog/README), 1 hidden" in caplog.text


def test_what_is_linked_is_read_once(folder, tmp_path):
    """From outside, with a link back into the tree; the tree's own folders come before what links lead to."""
    outside = tmp_path / "outside"
    save(outside / "e.png", (1, 2, 3))
    (outside / "back").symlink_to(folder)
    for name in ("a-first", "z-last"):
        (folder / name).symlink_to(outside)
    (folder / "a-dog").symlink_to(folder / "dog")
    images, left_out = listed(folder)
    assert [str(path) for path in images] == ["a-first/e.png", "cat/d.JPEG", "cat/deep/c.webp", "dog/a.bmp", "dog/b.png"]
    assert len(left_out["link(s) to a folder that is read already"]) == 3


def test_the_run_says_that_class_folders_are_not_classes(dataset, folder, caplog):
    with caplog.at_level("INFO"):
        dataset(num_classes=0).load()
    assert f"{folder} has 4 images, without classes, since dataset.num_classes=0; left out" in caplog.text


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no image \(.*\): check dataset\.root; left out: 1 \.gif file \(a\.gif\)\.$"):
        ImageFolder(tmp_path, tmp_path / "cache").load()
