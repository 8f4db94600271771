"""The layouts in which others publish the weights of networks, told apart by the names of the tensors; and files of tensors.

A new one is one object: a `Layout` with the names that tell it, and a function that reads it. `LAYOUTS` of `diffusion.foreign.published`
lists them."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.foreign.converted import Converted
from diffusion.support.errors import UserError

NAMED = 3  # keys that a sentence lists
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Weights(NamedTuple):
    """What is read: a file, its tensors by name, and `flags`, what the command line said of the network as `--num_channels 128` does."""

    path: Path
    tensors: Mapping[str, Tensor]
    flags: Mapping[str, str] = {}


@dataclass(frozen=True)
class Layout:
    """A layout of others.

    name: for sentences, such as "guided-diffusion's UNetModel".
    required: names of tensors that each file of it has.
    known: a pattern that matches each name that a file of it may have, whole.
    read: makes of such a file a model in our words; raises UserError for sizes or flags that make none, naming them."""

    name: str
    required: frozenset[str]
    known: re.Pattern[str]
    read: Callable[[Weights], Converted]

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The required names that are not there."""
        return sorted(self.required - set(names))

    def odd(self, names: Iterable[str]) -> list[str]:
        """The names that this layout has no place for."""
        return sorted(name for name in names if not self.known.fullmatch(name))


def found_among(layouts: Iterable[Layout], published: Weights) -> Layout:
    """The layout of a file. Raises UserError for none, with the two nearest and some names that differ."""
    names = published.tensors.keys()
    differing = [(layout, layout.lacking(names), layout.odd(names)) for layout in layouts]
    for layout, lacking, odd in differing:
        if not lacking and not odd:
            return layout
    nearest = sorted(differing, key=lambda d: len(d[1]) / max(1, len(d[0].required)) + len(d[2]) / max(1, len(names)))[:2]
    said = "; ".join(
        f"{layout.name}, which {' and '.join([*_few('has', lacking), *_few('has no place for', odd)])}" for layout, lacking, odd in nearest
    )
    raise UserError(f"{published.path} holds weights of an unknown layout. The nearest known ones: {said}.")


def _few(before: str, names: list[str]) -> list[str]:
    """[`before` some of the names], or [] of none."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{before} {', '.join(names[:NAMED])}{more}"] if names else []


def tensors_in(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name: of safetensors, or of torch's format, read without running what it holds.

    Raises UserError for a file that is damaged, is of another kind, or holds anything but tensors by name."""
    if file.suffix == ".safetensors":
        return _safetensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            said = f"{file} holds a {code[1]}, which would run as a program when it is read; save its tensors alone, by name."
            raise UserError(said) from None
        raise UserError(f"{file} cannot be read as weights ({type(error).__name__}); it is damaged or of another kind.") from error
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} holds no tensors by name; give the file of a network's weights (a state dict).")
    return {str(name): tensor for name, tensor in content.items()}


def require_numbers(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError for the first tensor that is not an array of finite floats, each of them in the file, as float32 too."""
    for name, tensor in tensors.items():
        if (wrong := _no_weights(tensor)) is not None:
            raise UserError(f"{file} has {name} {wrong}; weights are arrays of finite floats, so it is damaged or of another kind.")


def _no_weights(tensor: Tensor) -> str | None:
    """What is wrong with a tensor, as the rest of a sentence that begins with its name; None for weights. Only of one whose numbers are all
    there is memory taken."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
        return f"as a tensor without an array ({'meta' if tensor.is_meta else str(tensor.layout).removeprefix('torch.')})"
    if not tensor.is_floating_point():
        return f"of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {list(tensor.shape)}, of which it holds {tensor.untyped_storage().nbytes()} bytes"
    finite = (whole := tensor.detach().float()).isfinite()
    return None if finite.all() else f"with a weight of {whole[~finite][0].item()} in float32"


def safetensors() -> Any:
    """safetensors for torch. Raises UserError where it is not installed."""
    try:
        import safetensors.torch as found
    except ImportError:
        raise UserError("Files of safetensors need safetensors: install it with pip install 'diffusion[diffusers]'.") from None
    return found


def _safetensors(file: Path) -> dict[str, Tensor]:
    library = safetensors()
    try:
        return library.load_file(file)
    except Exception as error:  # of a damaged header, and of a missing file
        raise UserError(f"{file} cannot be read as safetensors ({type(error).__name__}); it is damaged or of another kind.") from error


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
