"""Tensors kept on disk between runs: written atomically, checked by hash when read, made once by many processes."""

import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from diffusion.support.files import atomic, lock
from diffusion.support.hashes import tensors_hash

Tensors = dict[str, torch.Tensor]

# What torch.load, or reading its result, raises for one damaged or foreign file or another.
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
)


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` and their hash to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    with atomic(path) as temporary, open(temporary, "wb") as file:  # a path would put its own name into the file
        torch.save({"tensors": tensors, "hash": tensors_hash(tensors)}, file)


def load_tensors(path: str | Path) -> Tensors | None:
    """Read what `save_tensors` wrote. None if there is no such file; None and a warning if it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if tensors_hash(content["tensors"]) == content["hash"]:
            return content["tensors"]
    except FileNotFoundError:
        return None
    except UNREADABLE:
        pass
    warnings.warn(f"The cache file {path} is damaged and will be made again.", stacklevel=2)
    return None


def load_or_make(path: str | Path, make: Callable[[], Tensors]) -> Tensors:
    """The tensors cached at `path`, made by `make()` and cached if they are not there."""
    path = Path(path)
    if (tensors := load_tensors(path)) is not None:  # what is there is read without a trace
        return tensors
    with lock(path.with_name(path.name + ".lock")):
        tensors = load_tensors(path)
        if tensors is None:
            tensors = make()
            save_tensors(path, tensors)
    return tensors


def is_first_on_this_machine() -> bool:
    """Whether this process writes the files of its machine (torchrun and Lightning both set LOCAL_RANK)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
