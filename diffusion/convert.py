"""Models of others as runs, and runs as models for others: `python -m diffusion.convert FROM TO`.

FROM is a run's folder or a checkpoint in it, a folder in diffusers' format, a file of weights in a layout that is known, or
hub:OWNER/NAME. TO is a folder, FILE.safetensors for the network's tensors alone, or hub:OWNER/NAME.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from diffusion.checkpoint import LAST, MODEL, load, weights_hash, write_checkpoint
from diffusion.codecs import Autoencoder
from diffusion.foreign.card import PLACE_KEYS
from diffusion.foreign.exported import write_pipeline
from diffusion.foreign.files import read_json, typed
from diffusion.foreign.hub import hub_name, pulled, push
from diffusion.foreign.layouts import safetensors, sha256_of
from diffusion.foreign.pipelines import MARK
from diffusion.foreign.published import converted
from diffusion.latents import COPY
from diffusion.model import Model
from diffusion.passport import code_version
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import atomic, require_writable

HEADER = "diffusion"  # of the metadata of a file of safetensors: the model's configuration and where it is from, as JSON
RUN, PIPELINE, TENSORS = "run", "diffusers", "safetensors"
WROTE = "wrote"  # in MARK: the sha256 of each other file that the command wrote

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """What was read: a model, plain data about where it is from, and whether it is a run of ours."""

    model: Model
    origin: Mapping[str, Any]
    ours: bool


def run_of(path: Path) -> Path | None:
    """The folder of the run that a path is, or is a checkpoint of; None for what is no run of ours."""
    checkpoints = path.absolute().parent
    folder = path if path.is_dir() else checkpoints.parent if checkpoints.name == "checkpoints" else None
    return folder if folder and (folder / "config.yaml").is_file() else None


def read_source(path: Path, averaged: bool, flags: Mapping[str, str], name: str) -> Taken:
    """The model of a run of ours, or of others, which gets this name. Raises UserError for what is neither."""
    folder = run_of(path)
    if folder is None:
        if not averaged:
            raise UserError(f"--last is for a run, and {path} has no weights but these.")
        found = converted(path, flags)
        model = found.model()
        return Taken(replace(model, weights=weights_hash(model.denoiser)), {"name": name, **found.origin}, False)
    if flags:
        raise UserError(f"--{next(iter(flags))} is for a file of others' weights, and {path} is a run, which says how it is built.")
    model = load(path, averaged)
    before = folder / MARK  # of a run that was converted itself
    said = read_json(before) if before.is_file() else {}
    typed(before, said, {"origin": dict})
    known = said.get("origin", {})
    typed(before, known, {"notes": list[str]})
    return Taken(model, {**known, "name": folder.resolve().name, "step": model.step}, True)


def write_run(model: Model, origin: Mapping[str, Any], folder: Path) -> None:
    """Write a model as a run's folder, which every command takes; its weights are the averaged ones and the last ones alike."""
    weights = {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
    ema = {"shadow": {}, "average": model.ema}
    (folder / "checkpoints").mkdir(parents=True)
    write_checkpoint({"state_dict": weights, "ema": ema, "global_step": model.step, "epoch": 0}, folder / "checkpoints" / LAST)
    config, codec = dict(model.config), model.codec
    if isinstance(codec, Autoencoder):  # the run has a copy of it
        if codec.keep is not None:
            codec.keep(folder / COPY)
        elif model.folder is not None:  # it was read from such a copy
            shutil.copytree(model.folder / COPY, folder / COPY)
        config["codec"] = {**config["codec"], "weights": codec.weights}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / MARK).write_text(json.dumps({"origin": dict(origin)}, indent=2) + "\n")


def write_tensors(model: Model, origin: Mapping[str, Any], file: Path) -> None:
    """Write the network's tensors by our names as safetensors, whose metadata says the model's configuration, without places here."""
    tensors = {name: tensor.contiguous() for name, tensor in model.denoiser.network.state_dict().items()}
    config = {group: portable(model.config[group]) for group in MODEL if group in model.config}
    safetensors().save_file(tensors, file, {HEADER: json.dumps({"config": config, "origin": origin})})


def portable(node: Any) -> Any:
    """A part of a configuration without its places on this machine."""
    return {key: portable(value) for key, value in node.items() if key not in PLACE_KEYS} if isinstance(node, Mapping) else node


WRITERS: Mapping[str, Callable[[Model, Mapping[str, Any], Path], None]] = {
    RUN: write_run,
    PIPELINE: write_pipeline,
    TENSORS: write_tensors,
}


def sign(folder: Path) -> None:
    """Write into a folder's MARK what each of its other files holds, so that they are known again as ours."""
    file = folder / MARK
    wrote = {entry.relative_to(folder).as_posix(): sha256_of(entry) for entry in sorted(folder.rglob("*")) if entry.is_file()}
    wrote.pop(MARK)
    file.write_text(json.dumps({**read_json(file), WROTE: wrote}, indent=2) + "\n")


def touched(folder: Path) -> list[str]:
    """What in a folder is not as this command wrote and signed it: files that changed, that are gone or that came; none of an empty one."""
    found = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
    mark = found.pop(MARK, None)
    wrote = read_json(mark).get(WROTE) if mark else {}
    if not isinstance(wrote, dict):
        return [MARK]
    folders = {parent.as_posix() for name in wrote for parent in Path(name).parents} - {"."}
    changed = [name for name in wrote if name in found and not (found[name].is_file() and sha256_of(found[name]) == wrote[name])]
    return sorted([*changed, *(found.keys() ^ (wrote.keys() | folders))])


def require_replaceable(target: Path, kind: str, source: Path) -> None:
    """Raises UserError for a place that is what is read, holds it or lies in it, that is a link or cannot be written, and one that holds
    anything but what this command wrote: it would be lost."""
    if target.is_symlink():
        raise UserError(f"{target} is a link to {target.readlink()}, and only the link would be replaced: name the place itself.")
    there, read = (Path(os.path.realpath(path)) for path in (target, run_of(source) or source))
    if source.resolve().is_relative_to(there):
        raise UserError(f"{target} is what is read, or holds it, and would be replaced: give another name.")
    if there.is_relative_to(read):
        raise UserError(f"{target} lies in what is read, which stays as it is: give a place outside of {read}.")
    require_writable(target.parent, "TO")
    others = touched(target) if kind != TENSORS and target.is_dir() else [target.name] * target.exists()
    if others:
        raise UserError(f"{target} is there already, and not as this command wrote it ({others[0]}): give another name, or remove it.")


@contextmanager
def traceless(folder: Path) -> Iterator[None]:
    """A folder that is made inside, and those above it, go again if nothing was written after all."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):  # it was not made, or another command has written there
                place.rmdir()
        raise


def write_as(
    source: str,
    target: str,
    kind: str | None = None,
    averaged: bool = True,
    private: bool = False,
    flags: Mapping[str, str] = {},
) -> str:
    """Write the model of `source` as `target`, all of it or nothing; returns where it is. `kind` is what is written: a run's folder, a
    folder of diffusers or a file of tensors; by default others' models become runs, and runs a folder of diffusers. `flags` say of a file
    of others' weights what its tensors do not.

    Raises UserError for what cannot be read, has no counterpart in that kind, or would replace what is not ours."""
    there, name = hub_name(target), hub_name(source)
    if private and there is None:
        raise UserError(f"--private is for the hub, and {target} is a place here.")
    if kind is not None and (there or target.endswith(".safetensors")):
        raise UserError(f"--as {kind} is for a folder: what {target} is to hold is said by its name.")
    path = Path(source) if name is None else pulled(name)
    if there is None:
        place = Path(target)
        kind = TENSORS if place.suffix == ".safetensors" else kind or (PIPELINE if run_of(path) else RUN)
        require_replaceable(place, kind, path)
    read = read_source(path, averaged, flags, (name or path.resolve().stem).rpartition("/")[2])
    for note in read.origin.get("notes", ()) if not read.ours else ():
        log.warning("%s", note)
    origin = {**read.origin, "code": code_version()}
    if there is not None:
        with TemporaryDirectory() as temporary:
            write_pipeline(read.model, origin, Path(temporary) / "model")
            return push(Path(temporary) / "model", there, private)
    with traceless(place.parent), atomic(place) as temporary_place:
        WRITERS[str(kind)](read.model, origin, temporary_place)
        if temporary_place.is_dir():
            sign(temporary_place)
    return str(place)


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """{"image_size": "64", "learn_sigma": "True"} of --image_size 64 --learn_sigma=True. Raises UserError for words that are no pairs."""
    waiting, found = list(words), {}
    while waiting:
        key, equals, value = waiting.pop(0).partition("=")
        if not key.startswith("--") or len(key) < 3 or not (equals or waiting):
            raise UserError(f"{key} is not understood: after FROM and TO, say what a file's network is by --KEY VALUE.")
        found[key[2:]] = value if equals else waiting.pop(0)
    return found


def command_line() -> argparse.ArgumentParser:
    """The words of the command; what it does not know are flags of a file."""
    lines = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.convert", description=lines[0], epilog=" ".join(lines[2:]), allow_abbrev=False
    )
    parser.add_argument("source", metavar="FROM", help="a run, a folder in diffusers' format, a file of weights, or hub:OWNER/NAME")
    parser.add_argument("target", metavar="TO", help="a folder, FILE.safetensors, or hub:OWNER/NAME")
    parser.add_argument("--as", dest="kind", choices=[RUN, PIPELINE], help="a run's folder, or a folder in diffusers' format")
    parser.add_argument("--last", action="store_true", help="a run's last weights, not its averaged ones")
    parser.add_argument("--private", action="store_true", help="on the hub, for yourself alone")
    return parser


def main() -> None:
    """The command."""
    given, rest = command_line().parse_known_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with one_sentence(OSError):
        print(write_as(given.source, given.target, given.kind, not given.last, given.private, flags_of(rest)))


if __name__ == "__main__":
    main()
