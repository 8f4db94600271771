"""Shared by all tests: one thread, and configurations of tiny runs."""

import os
from pathlib import Path

import pytest
import torch
from composing import TINY, composed

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def tiny(tmp_path: Path):
    """`tiny(*overrides)`: the configuration of a run of seconds on synthetic images, with its cache in a temporary folder."""
    return lambda *overrides: composed(*TINY, f"paths.cache={tmp_path / 'cache'}", *overrides)
