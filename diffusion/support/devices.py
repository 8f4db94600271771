"""Which device a command computes on: CUDA's first if there is one, else the CPU; under torchrun, each process its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from diffusion.support.errors import UserError
from diffusion.support.host import keep_freed_memory

APPLE = "Apple's GPU (mps) has no float64, in which times and noise levels are computed"
AUTO = "auto"  # a word for what is best here
JOINED: list[str] = []  # not empty once this process has joined a group
log = logging.getLogger(__name__)


def preferred() -> str:
    """The kind of device where none was asked for: "cuda" or "cpu". An Apple GPU that is passed over is said."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        log.warning("%s; the CPU is used.", APPLE)
    return "cpu"


def device(word: str) -> torch.device:
    """The device that device=WORD names. Raises UserError for one that is none, is not there, or has no float64."""
    if word.partition(":")[0] == "mps":
        raise UserError(f"device={word} cannot be used: {APPLE}; say device=cpu.")
    try:
        found = torch.device(preferred() if word == "auto" else word)
        torch.zeros((), dtype=torch.float64, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own words, such as those of a build without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={word} cannot be used ({reason}); say device=cpu, or cuda where there is a GPU, or auto.") from error
    return found


def multiply_in(word: str) -> None:
    """How float32 is multiplied from now on: torch's word for products of matrices, and cuDNN's convolutions, which that word leaves in
    TF32, likewise: highest is float32 in both."""
    torch.set_float32_matmul_precision(word)
    torch.backends.cudnn.allow_tf32 = word != "highest"


@contextmanager
def multiplying_in(word: str) -> Iterator[None]:
    """The same within the context."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    multiply_in(word)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def join_ranks(word: str) -> torch.device:
    """This process's device, after joining the others where torchrun started several; one group serves all the cells of a sweep. On a
    CPU the process keeps the memory that it frees."""
    kind = preferred() if word == "auto" else word
    found = device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    else:
        keep_freed_memory()
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        # A rank that is done waits for the slowest, hours on many images; torchrun ends all when one dies.
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=timedelta(days=1))
        JOINED.append(word)
    return found


def leave_ranks() -> None:
    """Leave the group of processes that `join_ranks` joined, after success and after an error; a training's is Lightning's."""
    if JOINED and dist.is_initialized():
        dist.destroy_process_group()


def accelerator(word: str) -> str:
    """What trainer.accelerator=WORD stands for. Raises UserError for Apple's GPU."""
    if word == "mps" or (word == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available()):
        raise UserError(f"trainer.accelerator={word} cannot be used: {APPLE}; say trainer.accelerator=cpu.")
    return preferred() if word == "auto" else word


def fastest(kind: str) -> str:
    """The precision that precision=auto stands for on a kind of device, the fastest that trains like float32: bf16-mixed where bfloat16 is
    multiplied in hardware, else 32-true."""
    if kind == "cpu":
        in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if in_hardware else "32-true"


def laid_out(module: torch.nn.Module, where: torch.device) -> torch.nn.Module:
    """The module with its convolutions' weights as a device's kernels read them: on a GPU the channels last, as cuDNN's for half precision
    do. On these the CPU's were no faster in float32, and slower in bfloat16."""
    return module.to(memory_format=torch.channels_last) if where.type == "cuda" else module


def laid_out_as(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` in memory in the order of `own`, which has its shape: itself, or a copy of its own type on its own device."""
    same = value.stride() == own.stride()
    return value if same else torch.empty_like(own, dtype=value.dtype, device=value.device).copy_(value)
