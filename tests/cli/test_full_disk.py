"""A disk that is full and a folder that cannot be written: one sentence, and all that had been written is whole."""

import resource
import signal
import subprocess

import pytest
from inside import lines

from diffusion.checkpoint import PREVIOUS, read_checkpoint
from diffusion.support.errors import UserError
from diffusion.training.module import DiffusionModule
from diffusion.training.run import train

WORDS = ["log_every=1", "checkpoint_every=2", "eval_every=100", "metric=none"]


@pytest.fixture
def limited(monkeypatch):
    """`limited(step, size)`: from the end of this step on no file may become larger than size() bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real = DiffusionModule.optimizer_step

    def limit(step, size):
        def optimizer_step(self, *args, **kwargs):
            real(self, *args, **kwargs)
            if self.global_step == step - 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size(), before[1]))

        monkeypatch.setattr(DiffusionModule, "optimizer_step", optimizer_step)

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def refused(config, folder):
    with pytest.raises(UserError, match="the disk did not take what it wrote") as error:
        train(config, folder)
    assert str(error.value).count("\n") == 0
    return str(error.value)


def assert_whole(folder, step):
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step
    assert read_checkpoint(folder / "checkpoints" / PREVIOUS)["global_step"] < step
    assert (folder / "metrics.jsonl").read_bytes().endswith(b"}\n") and lines(folder / "metrics.jsonl")
    assert not list(folder.rglob("*.tmp"))


def test_a_checkpoint_that_does_not_fit(tiny, tmp_path, limited):
    """The run goes on when there is room."""
    run, config = tmp_path / "run", tiny(*WORDS)
    limited(6, lambda: 30_000)
    text = refused(config, run)
    assert "File too large" in text and f"resume={run}" in text
    assert_whole(run, 4)
    assert lines(run / "metrics.jsonl")[-1]["step"] == 6
    limited(0, None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    train(config | {"resume": str(run)}, run)
    assert [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line] == list(range(1, 13))


def test_a_line_of_which_only_a_half_fits(tiny, tmp_path, limited):
    """It is not there at all."""
    file = tmp_path / "metrics.jsonl"
    limited(5, lambda: file.stat().st_size + 100)
    assert "metrics.jsonl" in refused(tiny(*WORDS), tmp_path)
    assert_whole(tmp_path, 4)
    assert [line["step"] for line in lines(file)] == [1, 2, 3, 4]


def test_a_file_system_that_is_full(tiny, tmp_path):
    """A real one, where the tests may mount it: of room for two checkpoints and not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        config = tiny(*WORDS)
        config["callbacks"]["checkpoints"]["keep_every"] = 2
        assert "No space left on device" in refused(config, disk / "run")
        folder = disk / "run"
        assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] >= 2
        assert (folder / "metrics.jsonl").read_bytes().endswith(b"}\n") and not list(folder.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("place", ["checkpoints", "metrics.jsonl/x", "config.yaml/x"])
def test_something_in_the_way(tiny, tmp_path, place):
    """A file where a folder should be, or a folder where a file should be."""
    run = tmp_path / "run"
    (run / place).parent.mkdir(parents=True)
    (run / place).write_text("")
    text = refused(tiny(*WORDS), run)
    assert place.split("/")[0] in text and "nothing had been saved yet" in text
