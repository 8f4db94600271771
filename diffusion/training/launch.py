"""Several processes from one command: how Lightning starts the other ranks, and the cleaning up after each job of a sweep."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
import yaml
from pytorch_lightning.strategies.launchers import subprocess_script

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
        command = [sys.executable, "-m", "diffusion.training.run", str(file), str(folder), *trust]
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
