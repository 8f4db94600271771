"""Real files beside the repository, where they are there, and one cache for the whole session."""

import subprocess
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def real_root():
    if not SHARED.is_dir():
        pytest.skip(f"no real data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    """CIFAR-10's archive takes some 7 s to unpack, so every test that only reads shares this cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cifar10_bin(real_root, tmp_path_factory):
    """CIFAR-10's binary members, unpacked once by tar."""
    folder = tmp_path_factory.mktemp("unpacked") / "cifar-10-batches-bin"
    folder.mkdir()
    subprocess.run(["tar", "xJf", real_root / "cifar10" / "cifar-10-binary.tar.xz", "-C", folder], check=True)
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        from urllib.error import URLError

        raise URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
