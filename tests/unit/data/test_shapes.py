"""Data of any shape: squares, rectangles, floats, vectors; and what the files of old caches and of Torchvision say."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from diffusion.data import CIFAR10, CIFAR100, MNIST, DataModule, Dataset, Digits, FashionMNIST, Stream, Synthetic, TwoMoons, flip
from diffusion.data.cache import Chunk, cache_folder
from diffusion.support.errors import UserError
from diffusion.support.sizes import height_and_width


@dataclass(frozen=True)
class Waves(Dataset):
    """Float items of any shape, in two chunks: item i is i + 0.5 everywhere."""

    num_classes: int = 0
    of: tuple[int, ...] = (3, 4, 2)
    value: float = 0.5

    name: ClassVar[str] = "waves"
    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of

    def key(self) -> Any:
        return [list(self.of), str(self.value)]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        items = (np.arange(7).reshape(-1, *[1] * len(self.of)) + np.full(self.of, self.value)).astype(np.float32)
        return "here", iter([(items[:4], None), (items[4:], None)])


@pytest.mark.parametrize("shape", [(3, 4, 2), (5,), (6, 2), (2, 3, 4, 5)])
def test_floats_of_any_shape_come_back(tmp_path, shape):
    dataset = Waves(cache=tmp_path, of=shape)
    for images in (dataset.load(), dataset.load()):
        assert images.images.dtype == np.float32 and images.images.shape == (7, *shape) and isinstance(images.images, np.memmap)
        assert (images.images.reshape(7, -1) == np.arange(7)[:, None] + 0.5).all() and images.labels is None
    batch = Stream(torch.from_numpy(dataset.load().images), None, batch_size=3).batch(0)
    assert batch.images.shape == (3, *shape) and batch.images.dtype == torch.float32
    (cache_folder(dataset) / "images.f32").write_bytes(b"cut")
    assert len(dataset.load()) == 7


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(UserError, match="waves holds numbers that are not finite"):
        Waves(cache=tmp_path, value=float("inf")).load()


def test_a_reader_that_gives_another_type_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Waves, "read", lambda self: ("", iter([(np.zeros((2, 3, 4, 2)), None)])))
    with pytest.raises(UserError, match=r"gave float64 items \(3, 4, 2\), not float32 \(3, 4, 2\)"):
        Waves(cache=tmp_path).load()


def test_a_cache_from_before_there_were_floats_is_read(tmp_path, monkeypatch):
    dataset = Synthetic(cache=tmp_path)
    sha256, path = dataset.load().sha256, cache_folder(dataset) / "info.json"
    info = json.loads(path.read_text())
    assert info.pop("dtype") == "uint8"
    path.write_text(json.dumps(info))
    monkeypatch.setattr(Synthetic, "read", lambda self: pytest.fail("made again"))
    assert dataset.load().sha256 == sha256 and dataset.load().images.dtype == np.uint8


def test_the_names_of_caches_stay():
    """As they were before there was any shape but the square: a cache that is there is found, and a passport's sha256 stays."""
    names = {
        Digits(): "digits-train-61507fd21548",
        CIFAR10(): "cifar10-train-a3cd6a692808",
        CIFAR10(split="test"): "cifar10-test-8631ce8f01e3",
        CIFAR100(): "cifar100-train-7007b3ab1c8f",
        MNIST(): "mnist-train-84f0da13d616",
        FashionMNIST(split="test"): "fashion_mnist-test-b64ed8f35d14",
        Synthetic(): "synthetic-train-e43d65e45bba",
    }
    assert {dataset: cache_folder(dataset).name for dataset in names} == names


def test_the_published_files_are_those_that_torchvision_names():
    from torchvision import datasets

    for ours, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        for split, files in (("train", theirs.train_list), ("test", theirs.test_list)):
            form = ours.forms[split][-1]
            assert form.md5 == dict(files) and theirs.base_folder in form.places and theirs.filename in form.places
            (download,) = ours.downloads[split]
            assert (download.filename, download.urls, download.md5) == (theirs.filename, (theirs.url,), theirs.tgz_md5)
    for ours, theirs in ((MNIST, datasets.MNIST), (FashionMNIST, datasets.FashionMNIST)):
        downloads = [download for split in ("train", "test") for download in ours.downloads[split]]
        assert [(download.filename, download.md5) for download in downloads] == list(theirs.resources)
        for download in downloads:
            assert download.urls == tuple(mirror + download.filename for mirror in theirs.mirrors)


def test_sizes():
    assert height_and_width(5) == (5, 5) and height_and_width([3, 7]) == (3, 7)
    for wrong in (0, [4], [4, 4, 4], [4, 0], "64", 3.5, [2.0, 2]):
        with pytest.raises(ValueError, match=r"image_size=.* is no size: say one number"):
            height_and_width(wrong)
    with pytest.raises(UserError, match=r"synthetic: dataset\.image_size=\[8, 0\] is no size"):
        Synthetic(image_size=[8, 0])


def test_a_synthetic_rectangle(tmp_path):
    dataset = Synthetic(cache=tmp_path, image_size=[4, 12], channels=5, num_classes=3, n=6)
    images = dataset.load()
    assert dataset.shape == images.images.shape[1:] == (4, 12, 5)
    assert all((images.images[i, :, 4 * label : 4 * label + 4] >= 192).all() for i, label in enumerate(images.labels))
    assert (images.images >= 192).sum() == 6 * 4 * 4 * 5
    assert Synthetic(image_size=[16, 16]) == Synthetic(image_size=16) == Synthetic(image_size=(16, 16))
    assert cache_folder(replace(dataset, image_size=[12, 4])) != cache_folder(dataset)


def test_a_square_set_says_its_size_to_a_rectangle(tmp_path):
    with pytest.raises(UserError, match=r"digits has image_size 8, which dataset\.image_size=\[8, 16\] contradicts"):
        Digits(cache=tmp_path, image_size=[8, 16]).load()


def test_mirroring_is_for_pictures_of_any_shape_and_type():
    for pictures in (torch.arange(48).reshape(2, 2, 4, 3), torch.rand(2, 3, 5, 1)):
        mirrored = flip(pictures.repeat(50, 1, 1, 1))
        plain = (mirrored == pictures.repeat(50, 1, 1, 1)).flatten(1).all(1)
        turned = (mirrored == pictures.repeat(50, 1, 1, 1).flip(2)).flatten(1).all(1)
        assert (plain ^ turned).all() and plain.any() and turned.any()
    with pytest.raises(ValueError, match="Only pictures"):
        flip(torch.rand(4, 2))
    with pytest.raises(UserError, match=r"two_moons holds no pictures that could be mirrored .*dataset\.flip=false"):
        TwoMoons(flip=True)


def distance_to_moon(points, labels):
    """How far each point is from the half circle of its label: from the circle, or beyond its ends from the nearer end."""
    centre, up = np.where(labels[:, None], [1, 0.5], [0, 0]), np.where(labels, -1, 1)
    x, y = points[:, 0] - centre[:, 0], (points[:, 1] - centre[:, 1]) * up
    return np.where(y >= 0, np.abs(np.hypot(x, y) - 1), np.hypot(np.abs(x) - 1, y))


def test_two_moons(tmp_path):
    images = TwoMoons(cache=tmp_path).load()
    assert images.images.shape == (10_000, 2) and images.images.dtype == np.float32 and images.num_classes == 2
    assert images.labels.tolist() == [0, 1] * 5000
    exact = TwoMoons(cache=tmp_path, noise=0.0).load()
    assert distance_to_moon(exact.images, exact.labels).max() < 1e-6
    noise = (images.images - exact.images) / 0.05  # the same angles, so that the noise alone is left
    # Four standard errors of the mean and deviation of 10,000 normals, and of their correlation.
    assert np.abs(noise.mean(0)).max() < 0.04 and np.abs(noise.std(0) - 1).max() < 0.03
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.04 and 3.2 < np.abs(noise).max() < 5.5
    # The angle is uniform: the mean height of a half circle is 2 / pi, its deviation sqrt(1/2 - 4/pi^2).
    upper = exact.images[exact.labels == 0]
    assert abs(upper[:, 1].mean() - 2 / np.pi) < 4 * 0.308 / 5000**0.5 and abs(upper[:, 0].mean()) < 4 * 0.708 / 5000**0.5


def test_two_moons_are_the_same_everywhere_and_each_split_is_its_own(tmp_path):
    train, test, other = (TwoMoons(cache=tmp_path, **words).load() for words in ({}, {"split": "test"}, {"seed": 1}))
    assert len(np.unique(np.concatenate([images.images for images in (train, test, other)]), axis=0)) > 29_990
    # Frozen from this code: float64 arithmetic rounded to float32 leaves a rounding of the machine no room.
    assert train.sha256.startswith("ab4ee078f5ea")


def test_two_moons_without_labels_and_contradicted(tmp_path):
    assert TwoMoons(cache=tmp_path, num_classes=0).load().labels is None
    with pytest.raises(UserError, match=r"two_moons has num_classes 2, which dataset\.num_classes=3"):
        TwoMoons(cache=tmp_path, num_classes=3).load()


@pytest.mark.parametrize("resident", [True, False])
def test_vectors_and_rectangles_are_served_to_a_training(tmp_path, resident):
    class Look(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.shapes = torch.nn.Parameter(torch.zeros(1)), set()

        def training_step(self, batch, batch_idx):
            self.shapes.add((tuple(batch.images.shape), batch.images.dtype))
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for dataset, expected in (
        (TwoMoons(cache=tmp_path), ((8, 2), torch.float32)),
        (Synthetic(cache=tmp_path, image_size=[4, 8], channels=6), ((8, 4, 8, 6), torch.uint8)),
        (Waves(cache=tmp_path, of=(2, 3, 1)), ((7, 2, 3, 1), torch.float32)),
    ):
        module = Look()
        trainer = pl.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(module, datamodule=DataModule(dataset, expected[0][0], device_resident=resident))
        assert module.shapes == {expected}


def test_data_sets_are_light():
    """In a fresh interpreter: what torch itself does not bring, the data sets do not either; DataModule brings Lightning."""
    script = """
import sys, torch
before = set(sys.modules)
import diffusion.data
heavy = {"pytorch_lightning", "lightning", "sklearn", "torchvision", "tqdm", "scipy", "matplotlib"}
print(sorted(heavy & (set(sys.modules) - before)), diffusion.data.DataModule.__name__)
print("pytorch_lightning" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[] DataModule", "True"]
    with pytest.raises(AttributeError, match="no attribute 'DataMule'"):
        import diffusion.data

        diffusion.data.DataMule  # noqa: B018
