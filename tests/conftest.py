"""Shared by all tests: one thread, and configurations of tiny runs."""

import os
from pathlib import Path

import pytest
import stable_folders
import torch
from composing import TINY, composed

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is marked `cuda` and has the fixture `device` runs there: on a GPU if there is one, unless another is said."""
    parser.addoption("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu", help="of tests/gpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a GPU, what is marked `cuda` is skipped, but for what runs on either."""
    if item.get_closest_marker("cuda") and "device" not in item.fixturenames and item.config.getoption("--device") == "cpu":
        pytest.skip("no GPU here")


@pytest.fixture
def tiny(tmp_path: Path):
    """`tiny(*overrides)`: the configuration of a run of seconds on synthetic images, with its cache in a temporary folder."""
    return lambda *overrides: composed(*TINY, f"paths.cache={tmp_path / 'cache'}", *overrides)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    """Two folders of random weights in diffusers' format: `one` as Stable Diffusion 1.x, `two` as 2.x."""
    pytest.importorskip("diffusers")
    place = tmp_path_factory.mktemp("stable")
    return {name: stable_folders.written(place / name, kind) for name, kind in stable_folders.KINDS.items()}


@pytest.fixture
def noise_of_a_device(monkeypatch):
    """The CPU draws the noise of images as a device does, so that the two can be compared."""
    monkeypatch.setattr("diffusion.noise.counts", lambda device: True)
