"""A call's folder says what made it and holds only its own; it takes the memory of one batch, and is whole or not there."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from processes import two_ranks

from diffusion import album
from diffusion.conditions import Classes
from diffusion.denoiser import Estimate
from diffusion.editing import FromImage, between
from diffusion.generate import Recipe, warn_of_no_numbers
from diffusion.grids import Trailing
from diffusion.part import CALLS, parts
from diffusion.samplers import DDIM, DDPM, DPMAdaptive
from diffusion.schedules import Cosine
from diffusion.support.errors import UserError
from diffusion.support.files import writing_in
from diffusion.typing import expand

ROOT = Path(__file__).parents[2]


class Squashed:
    """x_0 = tanh(x_t), which counts its calls and the largest batch."""

    def __init__(self):
        self.schedule, self.calls, self.largest = Cosine(), 0, 0

    def __call__(self, x, t, cond=None):
        self.calls, self.largest = self.calls + 1, max(self.largest, len(x))
        alpha, sigma = (expand(v, x) for v in self.schedule(t))
        return Estimate(torch.tanh(x), (x - alpha * torch.tanh(x)) / sigma)


class Floats:
    """A codec of float pictures [b, h, w, c]."""

    def decode(self, x):
        return 100 * x.permute(0, 2, 3, 1)


class Points:
    def decode(self, x):
        return x


def recipe(sampler=DDIM(), shape=(1, 4, 4), batch_size=3, **settings):  # noqa: B008
    return Recipe(Squashed(), sampler, Trailing(5), shape, batch_size=batch_size, **settings)


def made_by(recipe, seeds, **more):
    return {"step": 7, "weights": "ab", **recipe.describe(), "seeds": album.seeds_as_data(seeds), **more}


def written(folder, recipe, seeds=range(10), cond=None, **how):
    album.write(recipe, seeds, cond, folder, made_by(recipe, seeds), **how)
    return np.load(folder / "samples.npz")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}  # a zip file holds its hour


def test_all_that_is_in_it(tmp_path):
    way = recipe(conditions=Classes(3))
    made = written(tmp_path / "a", way, range(20, 30), torch.arange(10) % 3, columns=4, trajectory=True)
    assert np.array_equal(made["images"], recipe(batch_size=64)(range(20, 30)).images.numpy())
    assert made["seeds"].tolist() == list(range(20, 30)) and made["labels"].tolist() == [0, 1, 2] * 3 + [0]
    record = json.loads((tmp_path / "a/recipe.json").read_text())
    assert record == json.loads(str(made["recipe"])) == {**made_by(way, range(20, 30)), "nfe": 5}
    names = {*(f"{i:06d}.png" for i in range(10)), "grid.png", "samples.npz", "trajectory.gif", "recipe.json"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names and [path.name for path in tmp_path.iterdir()] == ["a"]
    for i in (0, 9):
        assert np.array_equal(np.array(Image.open(tmp_path / f"a/{i:06d}.png"))[..., 0], made["images"][i, ..., 0])
    assert Image.open(tmp_path / "a/trajectory.gif").n_frames == 5
    assert Image.open(tmp_path / "a/grid.png").size == (4 * 34 + 2, 3 * 34 + 2)


@pytest.mark.parametrize("sampler", [DDIM(), DPMAdaptive()], ids=str)
@pytest.mark.parametrize("seeds", [range(10), between([3, 8], 10)], ids=["seeds", "between"])
def test_all_is_sampled_once_and_in_batches(tmp_path, sampler, seeds):
    """With the trajectory, and between two seeds."""
    plain, filmed = recipe(sampler), recipe(sampler)
    plain(seeds)
    made = written(tmp_path / "a", filmed, seeds, trajectory=True)
    assert filmed.denoiser.calls == plain.denoiser.calls and filmed.denoiser.largest == 3
    assert np.array_equal(made["images"], recipe(sampler, batch_size=1)(seeds).images.numpy())
    assert ("seeds" in made) == isinstance(seeds, range)


def test_the_trajectory_shows_a_bounded_number_of_images_and_states(tmp_path):
    way = replace(recipe(DDPM(), batch_size=40), grid=Trailing(130))
    written(tmp_path / "a", way, range(100), trajectory=True)
    film = Image.open(tmp_path / "a/trajectory.gif")
    assert film.size == (8 * 34 + 2, 8 * 34 + 2) and album.FRAMES // 2 < film.n_frames <= album.FRAMES
    film.seek(film.n_frames - 1)
    grid = np.array(Image.open(tmp_path / "a/grid.png"))  # of 10 columns
    assert np.abs(np.array(film.convert("RGB"))[:34, : 8 * 34].astype(int) - grid[:34, : 8 * 34]).max() <= 1


def test_the_same_call_again_gives_the_same_files_and_another_leaves_nothing(tmp_path):
    written(tmp_path / "a", recipe(), range(10), trajectory=True)
    before = content(tmp_path / "a")
    written(tmp_path / "a", recipe(), range(10), trajectory=True)
    assert content(tmp_path / "a") == before
    written(tmp_path / "a", recipe(), range(4))
    assert len(list((tmp_path / "a").glob("0*.png"))) == 4 and not (tmp_path / "a/trajectory.gif").exists()


def test_it_is_written_where_the_command_may_write(tmp_path):
    with writing_in([tmp_path / "a"]):
        written(tmp_path / "a", recipe(), range(2), trajectory=True)
        with pytest.raises(UserError, match="not told to write"):
            written(tmp_path / "b", recipe(), range(2))


def test_a_name_says_what_made_it():
    """It is readable, has no `=`, and each thing that makes other files makes another name."""
    way, seeds = recipe(), range(20, 30)
    name = album.folder_name(made_by(way, seeds))
    assert (
        name.startswith("step7-ddim-5-n10-seed20-") and "=" not in name and name == album.folder_name(made_by(recipe(batch_size=1), seeds))
    )
    others = [
        made_by(replace(way, sampler=DDIM(0.5)), seeds),
        made_by(replace(way, grid=Trailing(6)), seeds),
        made_by(replace(way, precision="bf16-mixed"), seeds),
        made_by(way, range(20, 31)),
        made_by(way, range(21, 31)),
        made_by(way, between([20, 29], 10)),
        made_by(way, seeds) | {"weights": "cd"},
        made_by(way, seeds, classes=[3]),
        made_by(way, seeds, columns=3),
        *(made_by(replace(way, sampler=FromImage(DDIM(), image)), seeds) for image in torch.eye(256).split(1)[:2]),  # two pictures
    ]
    assert len({name, *map(album.folder_name, others)}) == 1 + len(others)


@pytest.mark.parametrize("name", ["notes.txt", "000000.png", "sub"])
def test_what_is_not_its_own_stays(tmp_path, name):
    """A folder with anything else is refused, even pictures with such names, before anything is made."""
    (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"out={tmp_path} holds {name}"):
        album.require_own(tmp_path, "out")
    written(folder := tmp_path / "a", recipe(), range(2))
    album.require_own(folder, "out")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        album.require_own(folder, "out")
    with pytest.raises(UserError, match="is a file"):
        album.require_own(folder / "notes.txt", "out")


def test_float_pictures_are_on_one_scale(tmp_path):
    way = replace(recipe(), codec=Floats())
    images = written(tmp_path / "a", way)["images"]
    whole = replace(way, batch_size=10)(range(10)).images.numpy()
    assert images.dtype == np.float32 and np.array_equal(images, whole)
    pictures = np.stack([np.array(Image.open(tmp_path / f"a/{i:06d}.png"))[..., 0] for i in range(10)])
    assert np.abs(pictures - 255 * (images[..., 0] - images.min()) / (images.max() - images.min())).max() <= 0.51


def test_points_are_scattered(tmp_path):
    made = written(tmp_path / "a", replace(recipe(shape=(2,)), codec=Points()))
    assert made["images"].shape == (10, 2) and {p.name for p in (tmp_path / "a").iterdir()} == {"grid.png", "samples.npz", "recipe.json"}


def test_a_seed_too_large_is_refused_before_the_first_batch(tmp_path):
    way = recipe()
    with pytest.raises(ValueError, match=r"outside 0 \.\. 4294967295"):
        written(tmp_path / "a", way, range(2**32 - 9, 2**32 + 1))
    assert way.denoiser.calls == 0 and list(tmp_path.iterdir()) == []


SLOW = """
    import sys, time, torch, resource
    from pathlib import Path
    sys.path[:0] = ["tests", "tests/unit"]
    from test_album import recipe, written
    class Slow(type(recipe().denoiser)):
        def __call__(self, x, t, cond=None):
            time.sleep(PAUSE)
            return super().__call__(x, t, cond)
    way = recipe(shape=(3, 32, 32), batch_size=50)
    object.__setattr__(way, "denoiser", Slow())
    written(Path(sys.argv[1]), way, range(int(sys.argv[2])))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def child(folder, n, pause=0.0):
    script = textwrap.dedent(SLOW).replace("PAUSE", str(pause))
    return subprocess.Popen([sys.executable, "-c", script, folder, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def begun(folder):
    """How many images the parts hold that stand beside a folder, of calls that are at work or were stopped."""
    return [int((np.fromfile(part / "calls", CALLS) > 0).sum()) if (part / "calls").exists() else 0 for part in parts(folder)]


def test_killed_in_the_middle_it_leaves_what_was_there(tmp_path):
    """And the next call of another kind takes away what the killed one had begun; not that of one that is at work."""
    written(tmp_path / "a", recipe(), range(4))
    before = content(tmp_path / "a")
    process = child(tmp_path / "a", 5000, pause=0.02)
    while not any(begun(tmp_path / "a")):
        time.sleep(0.05)
        assert process.poll() is None
    assert content(tmp_path / "a") == before
    written(tmp_path / "a", recipe(), range(5))
    assert len(parts(tmp_path / "a")) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(np.load(tmp_path / "a/samples.npz")["images"]) == 5 and len(parts(tmp_path / "a")) == 1
    written(tmp_path / "a", recipe(), range(6))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_killed_in_the_middle_the_same_call_goes_on(tmp_path):
    """It makes only what is missing, and the folder is that of a call that was never stopped."""
    process = child(tmp_path / "a", 1000, pause=0.02)
    while sum(begun(tmp_path / "a")) < 150:
        time.sleep(0.02)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (there,) = begun(tmp_path / "a")
    way = recipe(shape=(3, 32, 32), batch_size=50)
    made = written(tmp_path / "a", way, range(1000))
    assert way.denoiser.calls == 5 * -(-(1000 - there) // 50) and [path.name for path in tmp_path.iterdir()] == ["a"]
    assert np.array_equal(made["images"], recipe(shape=(3, 32, 32), batch_size=50)(range(1000)).images.numpy())
    assert json.loads((tmp_path / "a/recipe.json").read_text())["nfe"] == 5


class Stops(Squashed):
    """Ctrl-C in the third batch."""

    def __call__(self, x, t, cond=None):
        if self.calls == 12:
            raise KeyboardInterrupt
        return super().__call__(x, t, cond)


def test_an_interrupt_keeps_what_was_made_and_says_so(tmp_path, caplog):
    way = recipe()
    object.__setattr__(way, "denoiser", Stops())
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "a", way)
    assert begun(tmp_path / "a") == [6] and "6 of 10 images are kept" in caplog.text
    again = recipe()
    written(tmp_path / "a", again, trajectory=True)  # which shows the first images, so that all are made
    assert again.denoiser.calls == 20 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_stopped_call_of_another_name_stays(tmp_path):
    """`a` is the beginning of `a.npz`."""
    way = recipe()
    object.__setattr__(way, "denoiser", Stops())
    with pytest.raises(KeyboardInterrupt):
        album.write(way, range(10), None, tmp_path / "a.npz", made_by(way, range(10)))
    written(tmp_path / "a", recipe())
    assert begun(tmp_path / "a.npz") == [6]


def test_another_call_of_the_name_says_what_it_removes(tmp_path, caplog):
    way = recipe()
    object.__setattr__(way, "denoiser", Stops())
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "a", way)
    written(tmp_path / "a", recipe(), range(4))
    assert "6 images of another call, which was stopped, are removed" in caplog.text


def test_a_disk_that_takes_half_an_image_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset, pwrite=os.pwrite: pwrite(file, bytes(content)[:3], offset))
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "a", recipe())
    assert not (tmp_path / "a").exists()


def test_vectors_are_not_put_into_a_zip(tmp_path):
    way = replace(recipe(shape=(2,)), codec=Points())
    with pytest.raises(UserError, match="would hold pictures, and these are vectors"):
        album.write(way, range(4), None, tmp_path / "a.zip", made_by(way, range(4)))
    assert way.denoiser.calls == 0 and not list(tmp_path.iterdir())


def test_two_calls_at_once_of_the_same_images(tmp_path):
    process = child(tmp_path / "a", 5000, pause=0.02)
    while not any(begun(tmp_path / "a")):
        time.sleep(0.05)
        assert process.poll() is None
    way = recipe(shape=(3, 32, 32), batch_size=50)
    with pytest.raises(UserError, match="Another process is making these images"):
        written(tmp_path / "a", way, range(5000))
    process.kill()
    process.wait()
    assert way.denoiser.calls == 0


def test_an_npz_and_a_zip_hold_the_same(tmp_path):
    """The npz under guided-diffusion's names, and what made them in both; each is replaced by a later call, and nobody else's is."""
    way = recipe(conditions=Classes(3))
    folder = written(tmp_path / "a", way, cond=torch.arange(10) % 3)
    for name in ("made.npz", "made.zip"):
        for n in (4, 10):
            album.require_own(tmp_path / name, "out")
            album.write(way, range(n), torch.arange(n) % 3, tmp_path / name, made_by(way, range(n)))
    arrays = np.load(tmp_path / "made.npz")
    assert np.array_equal(arrays["arr_0"], folder["images"]) and np.array_equal(arrays["arr_1"], folder["labels"])
    assert json.loads(arrays["recipe"].item()) == json.loads((tmp_path / "a/recipe.json").read_text())
    with ZipFile(tmp_path / "made.zip") as archive:
        assert archive.namelist() == ["recipe.json", *(f"{i:06d}.png" for i in range(10)), "dataset.json"]
        assert json.loads(archive.read("dataset.json")) == {"labels": [[f"{i:06d}.png", i % 3] for i in range(10)]}
        with Image.open(archive.open("000007.png")) as picture:
            assert np.array_equal(np.array(picture), folder["images"][7, ..., 0])  # grey as it is
        assert json.loads(archive.read("recipe.json"))["nfe"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "made.npz", "made.zip"]
    np.savez(tmp_path / "other.npz", arr_0=folder["images"])
    (tmp_path / "other.zip").write_bytes(b"mine")
    with ZipFile(tmp_path / "cooking.zip", "w") as archive:
        archive.writestr("recipe.json", "{}")
        archive.writestr("precious.txt", "mine")
    for name in ("other.npz", "other.zip", "cooking.zip"):
        with pytest.raises(UserError, match="is not of a call of sample"):
            album.require_own(tmp_path / name, "out")


RANK = """
import sys, json, torch, torch.distributed as dist
from pathlib import Path
sys.path[:0] = ["tests", "tests/unit"]
rank, rendezvous, folder, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=2)
from test_album import recipe, made_by
from diffusion import album
way = recipe()
album.write(way, range(10), None, Path(folder), made_by(way, range(10)))
dist.barrier()
Path(output).write_text(json.dumps(way.denoiser.calls))
"""


def test_two_ranks_make_a_share_each(tmp_path, monkeypatch):
    """The images of one process, in half the batches each."""
    monkeypatch.chdir(ROOT)
    assert two_ranks(RANK, tmp_path, str(tmp_path / "a")) == [10, 10]  # two batches of five calls
    alone = written(tmp_path / "b", recipe())
    assert np.array_equal(np.load(tmp_path / "a/samples.npz")["images"], alone["images"])
    assert content(tmp_path / "a") == content(tmp_path / "b") and not parts(tmp_path / "a")


@pytest.mark.slow
def test_many_images_take_the_memory_of_one_batch(tmp_path):
    """10,000 of 3 x 32 x 32, which as float states are 123 MB."""
    few, many = (int(child(tmp_path / str(n), n).communicate()[0]) for n in (100, 10_000))
    assert many < few + 60  # 31 are the pictures, mapped: those pages count while memory is free


class Broken(Squashed):
    """As one of damaged weights, whose x_0 is no number."""

    def __call__(self, x, t, cond=None):
        return Estimate(*(part * torch.nan for part in super().__call__(x, t)[:2]))


@pytest.mark.parametrize("model, said", [(Broken(), True), (Squashed(), False)])
def test_what_is_no_number_is_said(tmp_path, caplog, model, said):
    """A picture of 8 bits would hide it."""
    warn_of_no_numbers.cache_clear()
    album.write(Recipe(model, DDIM(), Trailing(2), (1, 4, 4)), range(2), None, tmp_path / "made", {})
    assert any("NaN or infinity" in message for message in caplog.messages) == said
