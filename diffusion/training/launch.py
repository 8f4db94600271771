"""Several processes from one command: how Lightning starts the other ranks, how they end with one another, and the cleaning up after each
job of a sweep."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.strategies.launchers import subprocess_script

from diffusion.support.errors import UserError
from diffusion.support.files import lock

PATIENCE = 10.0  # seconds in which a rank that is to end may do so by itself; a cluster gives all of them about thirty
ARRIVAL = 5.0  # seconds in which a file that another machine has made is seen on a network's disk
ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@contextmanager
def job(config: Mapping[str, Any], folder: Path, trust: Sequence[str] = ()) -> Iterator[None]:
    """One training job in `folder`: ranks that Lightning starts run `diffusion.training.run` on this configuration.

    Stock Lightning re-runs the command line in them, which under a sweep would start the sweep again. Afterwards the process group
    and the environment are as before, so that a sweep's next job starts clean; torchrun's group serves all the jobs, since its store
    cannot hold a second one."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    hooks: Any = subprocess_script  # the hook is private and has no public twin
    stock = hooks._hydra_subprocess_cmd
    with TemporaryDirectory() as handed:
        file = Path(handed) / "config.yaml"
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        command = [sys.executable, "-m", "diffusion.training.run", str(file), str(folder), str(os.getpid()), *trust]
        hooks._hydra_subprocess_cmd = lambda rank: (command, os.getcwd())
        try:
            yield
        finally:
            hooks._hydra_subprocess_cmd = stock
            if before["WORLD_SIZE"] is None and dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The lock of a run's folder, for a training; it dies with its process. A dashboard that asks whether the run goes on has it for an
    instant, which is waited for.

    Raises UserError if another training has it. What a training made that wrote nothing, the lock's file and the folder, goes."""
    file, until = folder / ".lock", time.monotonic() + 0.5
    new, before = not file.exists(), written(folder)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(file, wait=False))
                break
            except (BlockingIOError, FileNotFoundError):  # or the folder has just been taken away
                if time.monotonic() > until:
                    raise UserError(f"Another process is training in {folder}: wait for its end, or give another name=NAME.") from None
            time.sleep(0.02)
        try:
            yield
        finally:
            if new and written(folder) == before:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # it has something in it
                    folder.rmdir()


def require_one_folder(trainer: Trainer) -> None:
    """Raises UserError, in all processes, unless they see the same run's folder: where torchrun or srun started them, each was told it by
    itself, and they may be on machines that share no disk."""
    folder = Path(trainer.default_root_dir)
    if trainer.world_size == 1:
        return
    token = folder / f".seen-{trainer.strategy.broadcast(secrets.token_hex(8))}.tmp"
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    trainer.strategy.barrier()
    until, seen = time.monotonic() + ARRIVAL, token.exists()
    while not (seen or time.monotonic() > until):
        time.sleep(0.1)
        seen = token.exists()
    seen = trainer.strategy.reduce_boolean_decision(seen)
    if trainer.is_global_zero:
        token.unlink()
    if not seen:
        raise UserError(
            f"The processes of this training do not share the folder {folder} of the first: say the same name=NAME to all, and "
            "paths.runs=PATH on a disk that all machines see."
        )


def written(folder: Path) -> int | None:
    """When a training last began in a run's folder, in nanoseconds; None if none has."""
    file = folder / "config.yaml"
    return file.stat().st_mtime_ns if file.exists() else None


def end_ranks(trainer: Trainer) -> None:
    """End the processes that Lightning has started from this one: by SIGTERM, again and again, and at last by SIGKILL.

    They leave the launcher's list, since its observer kills this process when one of them has ended."""
    launched: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
    alive, until = launched[:], time.monotonic() + PATIENCE
    launched.clear()
    while alive := [process for process in alive if process.poll() is None]:
        for process in alive:
            process.send_signal(signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        time.sleep(0.1)


def follow(parent: int) -> None:
    """End this rank when the process that started it has ended, however it did, be it while this one was loading: a rank that waits for
    another would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def parting() -> Iterator[None]:
    """A rank that leaves on a signal tells the process that started it, and lets it end the ranks and speak for them."""
    try:
        yield
    except SystemExit:
        if dist.is_initialized():
            dist.destroy_process_group()  # else the others may wait for this rank
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(2 * PATIENCE)
        raise
