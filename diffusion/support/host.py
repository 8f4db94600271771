"""What a command is told by the machine that it is started on, without torch, which is slow to import."""

import ctypes
import os
import re
import time
from contextlib import suppress
from pathlib import Path

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)


def started() -> str:
    """When this run began, YYYYmmdd-HHMMSS; under torchrun, when the agent began, so that the ranks of a machine agree, and under SLURM,
    when the job did, where it says so."""
    seconds = time.time()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        seconds = float(os.environ.get("SLURM_JOB_START_TIME", seconds))
    if "TORCHELASTIC_RUN_ID" in os.environ and Path("/proc").is_dir():
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
        boot = int(re.findall(r"^btime (\d+)", Path("/proc/stat").read_text(), re.M)[0])
        seconds = boot + ticks / os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA or AMD GPU that this process may use; answered without torch, which is slow to import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("HIP_VISIBLE_DEVICES")) in ("", "-1")
    return not hidden and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; answered without torch, which is slow to import."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu.strip() for gpu in said.split(",") if gpu.strip() not in ("", "-1")]
    there = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(there))]  # CUDA counts those that it can reach, whatever their names are


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it asks for next: a step on a CPU asks for as much as the last one. By default
    glibc gives it back to the kernel, which hands it out again a page at a time, zeroed. Other C libraries have no such switch."""
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM, -1)
        _ = libc.mallopt(MMAP, 1 << 30) or libc.mallopt(MMAP, 1 << 25)  # the most that an older glibc takes
