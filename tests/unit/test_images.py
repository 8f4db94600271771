"""Pictures of images."""

import pytest
import torch
from PIL import Image

from diffusion.pictures import save_gif, save_png, tile


def images(n: int, size: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 255, (n, size, size, channels), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_images_lie_row_by_row_with_white_between():
    batch = images(5)
    picture = tile(batch, columns=3, gap=1, cell=1)
    assert picture.shape == (7, 10, 3) and picture.dtype == torch.uint8
    for i, image in enumerate(batch):
        y, x = 1 + i // 3 * 3, 1 + i % 3 * 3
        assert torch.equal(picture[y : y + 2, x : x + 2], image)
    covered = torch.zeros(7, 10, dtype=torch.bool)
    for i in range(5):
        y, x = 1 + i // 3 * 3, 1 + i % 3 * 3
        covered[y : y + 2, x : x + 2] = True
    assert (picture[~covered] == 255).all()


def test_grey_becomes_colour_and_small_becomes_large():
    grey = images(1, size=8, channels=1)
    picture = tile(grey, columns=1, gap=0)
    assert picture.shape == (32, 32, 3)
    assert torch.equal(picture[::4, ::4, 0], grey[0, ..., 0]) and torch.equal(picture[3::4, 3::4, 2], grey[0, ..., 0])
    assert tile(images(1, size=64), columns=1, gap=0).shape == (64, 64, 3)


def test_png_is_lossless(tmp_path):
    picture = tile(images(4), columns=2)
    path = save_png(picture, tmp_path / "grid.png")
    with Image.open(path) as stored:
        assert stored.format == "PNG" and list(
            stored.get_flattened_data() if hasattr(stored, "get_flattened_data") else stored.getdata()
        ) == [tuple(pixel) for pixel in picture.flatten(0, 1).tolist()]
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_gif_has_every_frame_and_rests_on_the_last(tmp_path):
    frames = [tile(images(1) // 2 + 20 * i, columns=1) for i in range(5)]
    path = save_gif(frames, tmp_path / "trajectory.gif", seconds=1.0)
    with Image.open(path) as stored:
        assert stored.format == "GIF" and stored.n_frames == 5 and stored.info["loop"] == 0
        durations = []
        for i in range(5):
            stored.seek(i)
            durations.append(stored.info["duration"])
    assert durations == [200, 200, 200, 200, 1500]
    assert [file.name for file in tmp_path.iterdir()] == ["trajectory.gif"]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        save_png(torch.zeros(2, 2, 7, dtype=torch.uint8), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
