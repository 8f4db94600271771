"""What a command runs on, as plain data: beside code, configuration and data, what a number's last digits depend on."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("numpy", "pytorch-lightning")  # those that numbers are computed by, beside torch


@cache
def environment() -> dict[str, Any]:
    """The versions of `python`, `torch` and PACKAGES (None for one that is not installed), `platform`, `processor`, `threads` (torch's on a
    CPU), and `devices` (the names of the GPUs). Nothing of it names the machine or its user."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: installed(name) for name in PACKAGES},
        "platform": f"{platform.system()}-{platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def installed(package: str) -> str | None:
    """A package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's model, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
