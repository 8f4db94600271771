"""Shared by all tests: one thread, and configurations of tiny runs."""

import os
from pathlib import Path

import pytest
import torch
from composing import TINY, composed

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a GPU, what is marked `cuda` is skipped."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.fixture
def tiny(tmp_path: Path):
    """`tiny(*overrides)`: the configuration of a run of seconds on synthetic images, with its cache in a temporary folder."""
    return lambda *overrides: composed(*TINY, f"paths.cache={tmp_path / 'cache'}", *overrides)
