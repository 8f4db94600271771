"""Data that are no squares: rectangles, sizes that a model was not trained on, points in a plane."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from commands import command, succeeded
from composing import ROOT, way
from inside import lines, sampled, trained
from PIL import Image

from diffusion.checkpoint import load
from diffusion.support.errors import UserError

pytestmark = pytest.mark.xdist_group("shapes")
SHORT = ["steps=2", "batch_size=4", "log_every=1", "eval_every=2", "checkpoint_every=2", "grid.steps=2", "trainer.accelerator=cpu"]
SAMPLERS = sorted(file.stem for file in (ROOT / "conf/sampler").glob("*.yaml") if file.stem != "custom")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def rectangle(folder):
    """A run on pictures of 16 x 32 in a folder."""
    (folder / "pictures").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{i}.png")
    words = ["dataset=image_folder", f"dataset.root={folder / 'pictures'}", "dataset.image_size=[16,32]", "network=digits"]
    small = ["network.channels=8", "network.attention=[8]", "metric=none", "callbacks.samples.rows=2", "callbacks.samples.columns=2"]
    where = [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", "name=rectangle", "logger=none"]
    succeeded(command("train.py", *words, *small, *SHORT, *where))
    return folder / "rectangle"


def test_rectangles_train_resume_and_are_sampled(rectangle, tmp_path):
    assert yaml.safe_load((rectangle / "config.yaml").read_text())["codec"]["data_shape"] == [16, 32, 3]
    assert load(rectangle).codec.shape == (3, 16, 32)
    assert sampled(rectangle, tmp_path, "n=3")["images"].shape == (3, 16, 32, 3)
    copy = shutil.copytree(rectangle, tmp_path / "again")
    succeeded(command("train.py", f"resume={copy}", "steps=4"))
    assert torch.load(copy / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.fixture(scope="module")
def square(folder):
    """A U-Net trained on 16 x 16."""
    return trained(folder / "square", "dataset.image_size=16", "dataset.num_classes=0", "network.attention=[8]", *SHORT, "metric=none")


@pytest.mark.parametrize(
    "words, shape", [(["height=32", "width=32"], (32, 32)), (["height=24"], (24, 16)), (["width=8"], (16, 8)), ([], (16, 16))]
)
def test_another_size_than_that_of_training(square, tmp_path, words, shape):
    assert sampled(square, tmp_path, "n=2", *words)["images"].shape == (2, *shape, 1)


def test_a_size_that_the_network_cannot_take_is_a_sentence(square):
    result = command("sample.py", f"ckpt={square}", "n=1", "height=17", "device=cpu")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "17" in said and "multiple" in said


@pytest.fixture(scope="module")
def moons(folder):
    """A tiny run on points; two_moons brings its network, codec, metric and guidance."""
    words = ["dataset=two_moons", "dataset.n=200", "network.width=16", "network.depth=1", "metric.n=40", "metric.groups=0", "steps=6"]
    kept = [word for word in SHORT if not word.startswith(("steps", "batch_size"))]
    where = [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", "name=moons", "logger=none"]
    succeeded(command("train.py", *words, *kept, "batch_size=16", *where))
    return folder / "moons"


def test_points_are_measured_and_drawn(moons):
    numbers = [line for line in lines(moons / "metrics.jsonl") if "sliced-wasserstein@40" in line]
    assert [line["step"] for line in numbers] == [0, 2, 4, 6] and all(np.isfinite(line["sliced-wasserstein@40"]) for line in numbers)
    picture = np.array(Image.open(moons / "samples/main-step=00000006.png").convert("RGB"))
    assert min(picture.shape[:2]) > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1  # a scatter, not 40 tiles of two numbers
    assert (picture == 255).all(-1).mean() > 0.5
    assert yaml.safe_load((moons / "config.yaml").read_text())["codec"]["mean"] is not None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_points(moons, sampler):
    model = load(moons)
    said = way(model.config, f"sampler={sampler}", "grid.steps=4")
    points = model.recipe(said["sampler"], said["grid"], said["guidance"])(range(5), torch.arange(5) % 2).images
    assert points.shape == (5, 2) and points.dtype == torch.float32 and points.isfinite().all()


def test_points_by_the_command(moons, tmp_path):
    made = sampled(moons, tmp_path, "n=7", "classes=[1]")
    assert made["images"].shape == (7, 2) and made["images"].dtype == np.float32 and (made["labels"] == 1).all()
    assert (tmp_path / "grid.png").exists()
    for words, said in ((["edit=img2img", "edit.image=x.png"], "this one makes other things"), (["height=4"], "no height and width")):
        with pytest.raises((UserError, ValueError), match=said):
            sampled(moons, tmp_path, "n=1", *words)


def test_classes_as_often_as_in_the_data(folder, tmp_path):
    """conditions.frequencies=data: the run's config.yaml keeps them, the passport says so, and n changes no image's class."""
    words = ["conditions.frequencies=data", "metric=fd_digits", "metric.n=20", "metric.groups=0", "steps=1", "eval_every=1", "grid.steps=2"]
    run = trained(folder / "frequent", *words)
    frequencies = yaml.safe_load((run / "config.yaml").read_text())["conditions"]["frequencies"]
    assert len(frequencies) == 4 and sum(frequencies) == pytest.approx(1)
    passport = next(line["passport"] for line in lines(run / "metrics.jsonl") if "passport" in line)
    assert passport["conditions"] == {"name": "Classes", "frequencies": frequencies}
    few, many = (sampled(run, tmp_path, f"n={n}", f"sample_batch_size={size}")["labels"].tolist() for n, size in ((5, 2), (30, 30)))
    assert many[:5] == few and many != [i % 4 for i in range(30)] and json.dumps(many)
