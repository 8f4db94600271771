"""Pictures of images."""

import pytest
import torch
from PIL import Image

from diffusion.pictures import limits, save_gif, save_png, scatter, show, tile


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


@pytest.mark.parametrize("h, w, factor", [(8, 8, 4), (4, 16, 4), (16, 4, 4), (64, 128, 1), (2, 200, 1), (31, 33, 1)])
def test_rectangles_keep_their_shape(h, w, factor):
    batch = torch.randint(0, 255, (3, h, w, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = tile(batch, columns=2, gap=1)
    assert picture.shape == (2 * (h * factor + 1) + 1, 2 * (w * factor + 1) + 1, 3)
    second = picture[1 : 1 + h * factor, w * factor + 2 : 2 * w * factor + 2]
    assert torch.equal(second[::factor, ::factor], batch[1])


@pytest.mark.parametrize("channels, shown", [(1, [0, 0, 0]), (2, [0, 1, None]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])])
def test_any_number_of_channels_has_colours(channels, shown):
    batch = images(1, size=40, channels=channels)
    picture = tile(batch, columns=1, gap=0)
    for colour, channel in enumerate(shown):
        assert torch.equal(picture[..., colour], torch.zeros(40, 40, dtype=torch.uint8) if channel is None else batch[0, ..., channel])


def test_show_draws_what_a_batch_is():
    batch = images(4)
    assert torch.equal(show(batch, 2), tile(batch, 2))
    assert torch.equal(show(batch[..., 0], 2), tile(batch[..., :1], 2))
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(show(points, 2), scatter(points)) and not torch.equal(show(points, 2), show(-points, 2))
    with pytest.raises(ValueError, match=r"Items of shape \[2, 2, 2, 2\] are no pictures"):
        show(torch.zeros(1, 2, 2, 2, 2), 1)


def test_float_pictures_fill_the_range_together():
    batch = torch.tensor([[-3.0, 0.0], [1.0, 7.0]])[:, None, :, None].repeat_interleave(20, 2).expand(2, 40, 40, 1)
    picture = show(batch, 1)
    assert set(picture[2:42, 2:42].flatten().tolist()) == {0, 76}  # 0 is 3/10 of the way from -3 to 7
    assert set(picture.flatten().tolist()) == {0, 76, 102, 255}
    assert set(show(batch, 1, bounds=(-3, 17)).flatten().tolist()) == {0, 38, 51, 128, 255}
    assert limits(batch) == (-3, 7)
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, 2.0])[None, :, None, None]
    assert show(strange, 1)[2:-2, 3, 0].reshape(5, -1)[:, 0].tolist() == [0, 255, 0, 0, 255]
    assert show(torch.full((1, 4, 4, 1), 5.0), 1).shape == (36, 36, 3)


def centres(picture: torch.Tensor) -> torch.Tensor:
    """Where the ink is: the mean (row, column) of the pixels that are much bluer than red, without the frame."""
    inner = picture[1:-1, 1:-1].double()
    return ((inner[..., 2] - inner[..., 0]) > 60).nonzero().double().mean(0) + 1


def test_a_dot_lies_where_its_point_is():
    """x to the right and y upwards, from a margin of a twentieth to as far from the other side."""
    bounds = (torch.tensor([-1.0, 10.0]), torch.tensor([1.0, 20.0]))
    for point, row, column in (([-1.0, 10.0], 379, 20), ([1.0, 20.0], 20, 379), ([0.5, 12.5], 379 - 359 / 4, 20 + 359 * 3 / 4)):
        found = centres(scatter(torch.tensor([point]), bounds))
        torch.testing.assert_close(found, torch.tensor([row, column], dtype=torch.float64), rtol=0, atol=0.51)
    two = centres(scatter(torch.tensor([[3.0, 5.0], [4.0, 9.0]])))  # the points' own limits: opposite corners
    torch.testing.assert_close(two, torch.full((2,), 199.5, dtype=torch.float64), rtol=0, atol=0.6)


def test_the_order_of_points_does_not_matter_and_their_number_does():
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scatter(points), scatter(points.flip(0)))
    once, thrice = (scatter(torch.zeros(n, 2), (-1, 1), radius=3.0) for n in (1, 3))
    assert thrice.min(-1).values[199:201, 199:201].float().mean() < once.min(-1).values[199:201, 199:201].float().mean() - 20


def test_points_that_cannot_be_drawn_are_left_out():
    inside = torch.tensor([[0.2, 0.3], [0.7, 0.1]])
    strange = torch.tensor([[float("nan"), 0.5], [0.5, float("inf")], [50.0, 0.5], [0.5, -1e300], [-2.0, 0.0]], dtype=torch.float64)
    assert torch.equal(scatter(torch.cat([inside.double(), strange]), (0, 1), radius=2.0), scatter(inside, (0, 1), radius=2.0))
    for points in (torch.empty(0, 2), torch.full((3, 2), float("nan")), torch.ones(5, 2), torch.randn(9, 1), torch.zeros(1, 4)):
        picture = scatter(points)
        assert picture.shape == (400, 400, 3) and picture.dtype == torch.uint8
    assert scatter(torch.randn(9, 1), (-4.0, 4.0)).shape == (400, 400, 3)


def test_zero_has_lines():
    picture = scatter(torch.empty(0, 2), (torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 2.0])))
    assert (picture[1:-1, 200] == 222).all() and (picture[1:-1, 1:-1].amin((0, 2)) < 255).sum() == 1  # x = 0 is in it, y = 0 is not
    assert (picture[0] == 120).all() and (picture[:, -1] == 120).all()
