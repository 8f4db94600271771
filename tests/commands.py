"""Running the project's commands as a user does."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from forks import FORKS, ROOT

SMALL = [
    "dataset=synthetic",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.num_classes=4",
    "network.channels=8",
    "batch_size=8",
    "steps=6",
    "log_every=2",
    "eval_every=3",
    "checkpoint_every=4",
    "grid.steps=3",
    "trainer.accelerator=cpu",
    "callbacks.samples.columns=3",
]


def command(
    *words: str, launcher: tuple[str, ...] = (), timeout: float = 300, env: dict | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run `python [launcher] WORDS` in the repository's root, or elsewhere; never raises, the caller looks at returncode. With a launcher
    or an environment of its own, but for PYTHONPATH, it is a new process, otherwise the child of one that has imported all."""
    line = [*launcher, *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR",)} | (env or {})
    if launcher or (env or {}).keys() - {"PYTHONPATH"}:
        return subprocess.run([sys.executable, *line], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment)
    with TemporaryDirectory() as folder:
        output = [Path(folder) / name for name in ("stdout", "stderr")]
        code = FORKS.wait(FORKS.start(line, cwd, environment, output), timeout)
        said = [path.read_text() if path.exists() else "" for path in output]
    if code is None:
        raise subprocess.TimeoutExpired(line, timeout, *said)
    return subprocess.CompletedProcess(line, code, *said)


def small_run(folder: Path, name: str, *words: str) -> Path:
    """A training of a few steps, without pictures and metrics, at `folder`/`name`."""
    quick = ["callbacks.samples=null", "eval_every=100", "schedule.num_timesteps=50", "metric=none", "logger=none"]
    succeeded(command("train.py", *SMALL, *quick, f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", f"name={name}", *words))
    return folder / name


def succeeded(result: subprocess.CompletedProcess) -> str:
    """Its standard output, or an assertion with all it said."""
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout
