"""Which device a command computes on: CUDA's first if there is one, else the CPU."""

import logging

import torch

from diffusion.support.errors import UserError

APPLE = "Apple's GPU (mps) has no float64, in which times and noise levels are computed"
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


def accelerator(word: str) -> str:
    """What trainer.accelerator=WORD stands for. Raises UserError for Apple's GPU."""
    if word == "mps" or (word == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available()):
        raise UserError(f"trainer.accelerator={word} cannot be used: {APPLE}; say trainer.accelerator=cpu.")
    return preferred() if word == "auto" else word
