"""The cache: made once, whole or absent, whoever asks and whatever dies."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from diffusion.data import Synthetic, cache
from diffusion.data.cache import cache_folder
from diffusion.support import files
from diffusion.support.errors import UserError
from diffusion.support.files import atomic, lock


def visible(folder):
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))


def test_content_and_passport(tmp_path):
    dataset = Synthetic(cache=tmp_path, image_size=6, channels=2, num_classes=3, n=10)
    images = dataset.load()
    assert images.images.shape == (10, 6, 6, 2) and isinstance(images.images, np.memmap)
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and images.labels.dtype == np.int64
    assert all((images.images[i, :, 2 * label : 2 * label + 2] >= 192).all() for i, label in enumerate(images.labels))
    info = json.loads((cache_folder(dataset) / "info.json").read_text())
    assert info["sha256"] == images.sha256 and info["n"] == len(images) == 10
    assert (images.name, images.split, images.num_classes) == ("synthetic", "train", 3)
    assert images.sha256 == replace(dataset, cache=tmp_path / "again").load().sha256
    # Frozen from this code: the arithmetic is of integers, so the bytes are the same on every machine.
    assert images.sha256.startswith("cbd4643c8dd7")


def test_a_second_load_reads_and_does_not_make(tmp_path, monkeypatch):
    first = Synthetic(cache=tmp_path).load()
    monkeypatch.setattr(Synthetic, "read", lambda self: pytest.fail("made again"))
    assert np.array_equal(Synthetic(cache=tmp_path).load().images, first.images)


def test_writing_to_the_images_does_not_reach_the_file(tmp_path):
    Synthetic(cache=tmp_path).load().images[:] = 0
    assert Synthetic(cache=tmp_path).load().images.any()


def test_unlabelled(tmp_path):
    images = Synthetic(cache=tmp_path, num_classes=0).load()
    assert images.labels is None and images.num_classes == 0


@pytest.mark.parametrize("change", [{"split": "test"}, {"n": 255}, {"seed": 1}, {"image_size": 8}, {"num_classes": 0}])
def test_what_determines_the_content_determines_the_folder(tmp_path, change):
    dataset = Synthetic(cache=tmp_path)
    assert cache_folder(replace(dataset, **change)) != cache_folder(dataset)
    assert cache_folder(replace(dataset, flip=True)) == cache_folder(dataset)


@pytest.mark.parametrize("name", ["images.u8", "labels.npy", "info.json"])
def test_a_cache_cut_afterwards_is_made_again(tmp_path, name):
    dataset = Synthetic(cache=tmp_path)
    sha256 = dataset.load().sha256
    os.truncate(cache_folder(dataset) / name, 20)
    images = dataset.load()
    assert images.sha256 == sha256 and len(images.labels) == len(images) == 256


@pytest.mark.parametrize("name", ["images.u8", "labels.npy"])
def test_a_cache_changed_afterwards_is_made_again(tmp_path, caplog, name):
    """By one bit, at the same size, as a disk or a program may do it."""
    dataset = Synthetic(cache=tmp_path)
    before = dataset.load()
    content, path = before.images.copy(), cache_folder(dataset) / name
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    images = dataset.load()
    assert np.array_equal(images.images, content) and np.array_equal(images.labels, before.labels)
    assert caplog.messages == [f"The cache {path.parent} is damaged and is made again."]


def test_a_damaged_cache_that_cannot_be_made_again_is_no_data(tmp_path, caplog, monkeypatch):
    """It stays as it is, so that the next command says the same."""
    dataset = Synthetic(cache=tmp_path)
    dataset.load()
    path = cache_folder(dataset) / "images.u8"
    path.write_bytes(bytes(path.stat().st_size))

    def gone(self):
        raise UserError("The published files are gone.")

    monkeypatch.setattr(Synthetic, "read", gone)
    for _ in range(2):
        with pytest.raises(UserError, match="files are gone"):
            dataset.load()
    assert caplog.messages == [f"The cache {path.parent} is damaged and is made again."] * 2


def test_a_cache_is_read_whole_once_in_a_process_and_a_large_one_never(tmp_path, monkeypatch):
    dataset = Synthetic(cache=tmp_path)
    dataset.load()
    read = []
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda file, name: read.append(name) or hashlib.sha256(file.read()))
    for _ in range(3):
        dataset.load()
    assert len(read) == 1
    os.utime(cache_folder(dataset) / "images.u8", (1, 1))
    dataset.load()
    assert len(read) == 2
    os.utime(cache_folder(dataset) / "images.u8", (2, 2))
    monkeypatch.setattr(cache, "HASHED", 100)
    assert dataset.load().images.any() and len(read) == 2


def test_an_exception_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def broken(self):
        def chunks():
            yield np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, np.int64)
            raise UserError("the third image is broken")

        return "here", chunks()

    monkeypatch.setattr(Synthetic, "read", broken)
    with pytest.raises(UserError, match="third image"):
        Synthetic(cache=tmp_path).load()
    assert visible(tmp_path) == []


def test_a_reader_that_gives_the_wrong_shape_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Synthetic, "read", lambda self: ("", iter([(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2))])))
    with pytest.raises(UserError, match=r"not uint8 \(16, 16, 3\)"):
        Synthetic(cache=tmp_path).load()
    assert visible(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache of synthetic in .*file.* point dataset\.cache"):
        Synthetic(cache=tmp_path / "file").load()


class Slow(Synthetic):
    """Gives an image at a time, and says so in a log beside the cache."""

    def read(self):
        def chunks():
            for i in range(self.n):
                with open(self.root / "log", "a") as log:
                    log.write(f"{os.getpid()}\n")
                time.sleep(0.01)
                yield np.full((1, 16, 16, 3), i, np.uint8), np.array([i % 10])

        return "slow", chunks()


@pytest.fixture
def slow(tmp_path):
    return Slow(root=tmp_path, cache=tmp_path / "cache", n=60)


def start(target, *args):
    """A child by fork: it need not import everything again, and does nothing but numpy and files."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def test_a_killed_writer_leaves_the_cache_absent_and_the_next_one_cleans_up(slow):
    process = start(slow.load)
    while not (slow.root / "log").exists() or len((slow.root / "log").read_text().split()) < 5:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not cache_folder(slow).exists()
    assert len(visible(slow.cache)) == 1  # its temporary folder, which it had no time to remove
    assert slow.load().labels.tolist() == [i % 10 for i in range(60)]
    assert visible(slow.cache) == [cache_folder(slow).name]


def test_of_several_processes_one_makes_and_all_read(slow):
    def read_and_tell():
        (slow.root / f"{os.getpid()}.sha").write_text(slow.load().sha256)

    processes = [start(read_and_tell) for _ in range(4)]
    for process in processes:
        process.join(60)
    told = {(slow.root / f"{process.pid}.sha").read_text() for process in processes}
    assert told == {slow.load().sha256}
    makers = (slow.root / "log").read_text().split()
    assert len(makers) == 60 and len(set(makers)) == 1


def test_a_lock_is_exclusive_and_its_holders_death_frees_it(tmp_path):
    code = "import sys, time, diffusion.support.files as f\nwith f.lock(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "l"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    waiter = subprocess.Popen([sys.executable, "-c", code, tmp_path / "l"], stdout=subprocess.PIPE)
    time.sleep(0.5)
    os.set_blocking(waiter.stdout.fileno(), False)
    assert not waiter.stdout.readline()
    waiter.kill()
    holder.kill()
    holder.wait()
    waiter.wait()
    with lock(tmp_path / "l"):
        pass


def test_a_lock_ends_with_its_process_and_not_with_a_child_of_it(tmp_path):
    """A DataLoader's worker notices after seconds that the training was killed."""
    code = """
import os, sys, time, diffusion.support.files as f
with f.lock(sys.argv[1]):
    child = os.fork()
    print(child, flush=True) if child else None
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "l"], stdout=subprocess.PIPE)
    child = int(holder.stdout.readline())
    try:
        time.sleep(0.2)
        with pytest.raises(BlockingIOError), lock(tmp_path / "l", wait=False):
            pass
        holder.kill()
        holder.wait()
        with lock(tmp_path / "l", wait=False):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_writer_that_ends_while_it_is_looked_for(tmp_path, monkeypatch):
    left = [tmp_path / f".file.{name}.tmp" for name in "ab"]
    left[1].mkdir()
    monkeypatch.setattr(files, "temporaries", lambda path: left)
    files.sweep(tmp_path / "file")
    assert not left[1].exists()


def test_atomic_replaces_a_file_or_leaves_it(tmp_path):
    target = tmp_path / "folder" / "file"
    with atomic(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    with atomic(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and [entry.name for entry in target.parent.iterdir()] == ["file"]
