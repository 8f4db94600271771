"""The files of a folder in diffusers' format: configurations in JSON, weights in safetensors."""

import json
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from diffusion.support.errors import UserError
from diffusion.support.ranges import fits, outside, spelled

# Settings that would have the libraries bring code or other weights, with the values that do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "_attn_implementation": (None, "sdpa", "eager"),
    "attn_implementation": (None, "sdpa", "eager"),
    "use_kernels": (None, False),
}
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # of the files that each library writes weights to
# diffusers' files of weights, the best first: whole precision before half, and of each safetensors before pickles.
WEIGHTS = tuple(f"{STEMS['diffusers']}{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin"))


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds. Raises UserError if it is missing or holds none."""
    if not file.is_file():
        raise UserError(f"There is no {file}: the folder is not complete, or not in diffusers' format.")
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # of bytes that are no text too
        raise UserError(f"{file} cannot be read as JSON ({error}); it is damaged.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no mapping; it is damaged or of another kind.")
    return content


def imported(library: str) -> Any:
    """diffusers or transformers, without its bars. Raises UserError where it is not installed."""
    try:
        found = import_module(library)
    except ImportError:
        raise UserError(f"A folder in diffusers' format needs {library}: install it with pip install 'diffusion[diffusers]'.") from None
    found.utils.logging.disable_progress_bar()
    found.utils.logging.set_verbosity_error()  # what does not fit is said here, in a sentence
    return found


SD = "Stable Diffusion 1.x and 2.x"


def require_parts(file: Path, index: Mapping[str, Any], libraries: Mapping[str, str], idle: Collection[str] = ()) -> None:
    """Raises UserError for a part that an index names and that is not read, unless it is null or `idle`, which changes no image; and for
    one that is read and is of another library than `libraries` says, or of no class."""
    for part, said in index.items():
        if not part.startswith("_") and part not in {*libraries, *idle} and said not in (None, [None, None]):
            known = ", ".join(libraries)
            raise UserError(f"{file} names the part {brief(part)}={brief(said)}, which is not read; the parts that are read are {known}.")
    for part, library in libraries.items():
        said = index.get(part)
        if not (isinstance(said, list) and len(said) == 2 and isinstance(said[1], str) and said[0] == library):
            raise UserError(f"{file} has {part}={brief(said)}, which should be [{library}, the name of a class of it].")


def brief(value: object, most: int = 80) -> str:
    """A value of a file as a sentence names it: its beginning, if it is long."""
    said = str(value)
    return said if len(said) <= most else f"{said[:most]}..."


def typed(file: Path, config: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises UserError for the first setting of a file that is not of its kind: an annotation of a type, and of the range of its numbers.
    One that is left out is not looked at."""
    for key, kind in kinds.items():
        if key not in config:
            continue
        if not fits(config[key], kind):
            raise UserError(f"{file} has {key}={brief(config[key])}, which should be of type {spelled(kind)}; it is damaged.")
        if (found := outside(config[key], kind)) is not None:
            place, number, limits = found
            null = ", or null" if fits(None, kind) else ""
            raise UserError(f"{file} has {key}{place}={brief(number)}, which must be {limits}{null}.")


def required(folder: Path, config: Mapping[str, Any], usual: Mapping[str, tuple[Any, ...]], models: str = SD) -> None:
    """Raises UserError for the first setting of a configuration that is none of its `usual` values; one that is left out is usual, as it is
    in all `models` that are read."""
    for key, values in usual.items():
        if key in config and config[key] not in values:
            words = " or ".join("null" if value is None else str(value) for value in values)
            raise UserError(f"{folder} has {key}={brief(config[key])}, and only {words} can be read; {models} have no other.")


def pretrained(library: str, name: str, folder: Path) -> nn.Module:
    """The `name` of diffusers or transformers with a folder's configuration and weights: float32, in evaluation mode, without gradients.

    Raises UserError for a missing library, and for a folder whose weights are not safetensors, are damaged or do not fit its
    configuration. A .bin file is a pickle, which runs as a program when it is read, and is refused."""
    required(folder, read_json(folder / "config.json"), {"_class_name": (name,), **PLAIN})
    kind, stem = getattr(imported(library), name), STEMS[library]
    halves = [] if any(folder.glob(f"{stem}.safetensors*")) else list(folder.glob(f"{stem}*.fp16*.safetensors*"))
    if not halves and not any(folder.glob(f"{stem}*.safetensors")):
        raise UserError(f"{folder} holds no {stem}.safetensors; other kinds of files may be programs: convert the weights to safetensors.")
    try:
        model, found = kind.from_pretrained(
            folder, variant="fp16" if halves else None, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the libraries raise many kinds for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else "nothing more"
        raise UserError(f"The weights in {folder} do not fit its config.json or are damaged ({type(error).__name__}: {reason}).") from error
    if missing := found["missing_keys"]:
        raise UserError(f"The weights in {folder} lack {sorted(missing)[0]}, which its config.json describes; the folder is not complete.")
    model = model.float().eval().requires_grad_(False)
    if bad := [name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise UserError(f"The weights in {folder} have numbers that are none, NaN or infinite, in {bad[0]}; they are damaged.")
    return model
