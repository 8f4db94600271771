"""A checkpoint of which each process of a sharded training has written its own part.

    checkpoints/last.ckpt             plain data, whole tensors, and of each sharded tensor its shape and type (on torch's device "meta")
                shards/ID/0000.ckpt   process 0: its rows of these tensors, by their places in last.ckpt

last.ckpt names the parts and the hash of each, and is written after them: so a checkpoint is whole or absent, as one of a single file is.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffusion.support.errors import UserError
from diffusion.support.files import SEAL, atomic, broken, seal
from diffusion.support.ranks import rank_and_world

log = logging.getLogger(__name__)

SHARDS = "shards"
NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Shard:
    """This process's `rows` of a tensor of `shape`, whose others have the rows before and behind."""

    rows: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """A sharded tensor as it lies in its files, one part after another: parts[start:stop] are these rows, parts[:] all."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole tensor's."""
        return (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        found, first = [], 0
        for part in self.parts:
            found.append(part[min(max(start - first, 0), len(part)) : min(max(stop - first, 0), len(part))])
            first += len(part)
        return torch.cat(found)


def mapped(content: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """The content with each of its leaves changed; a leaf is named by the keys that lead to it, as "ema/shadow/network.out.bias"."""
    if isinstance(content, Mapping):
        return {key: mapped(value, change, f"{place}/{key}" if place else str(key)) for key, value in content.items()}
    if isinstance(content, list | tuple) and not hasattr(content, "_fields"):
        return type(content)(mapped(value, change, f"{place}/{i}") for i, value in enumerate(content))
    return change(place, content)


def sharded(content: Any) -> bool:
    """Whether there is a `Shard` in it."""
    found = []
    mapped(content, lambda _, leaf: found.append(leaf) if isinstance(leaf, Shard) else None)
    return bool(found)


def write_shards(content: Mapping[str, Any], file: Path, finish: Callable[[dict[str, Any]], None]) -> None:
    """Write this process's shards beside `file`; when all have, `finish` writes `file` itself on the first. All processes call it with the
    same content but for the rows. Raises OSError on each if the disk of any did not take its part."""
    rows: dict[str, Tensor] = {}

    def apart(place: str, leaf: Any) -> Any:
        if not isinstance(leaf, Shard):
            return leaf
        rows[place] = leaf.rows.detach().cpu().clone()  # without what else is in its storage
        return torch.empty(leaf.shape, dtype=leaf.rows.dtype, device="meta")

    skeleton, rank = mapped(content, apart), rank_and_world()[0]
    name = word_of_the_first(secrets.token_hex(8))
    part = file.parent / SHARDS / name / f"{rank:04d}.ckpt"
    seals = all_or_none(lambda: write_part(rows, part))
    all_or_none(lambda: finish(skeleton | {SHARDS: {"name": name, "seals": seals}}) if rank == 0 else None)
    if rank == 0:
        with suppress(Exception):  # it never ends a training, whose other processes would wait
            tidy(file.parent)


def write_part(rows: dict[str, Tensor], file: Path) -> str:
    """Write a process's part, whole or not at all. Returns its hash."""
    with atomic(file) as temporary:
        with open(temporary, "wb") as opened:
            torch.save(rows, opened)
        seal(temporary)
        return seal_of(temporary)


def seal_of(file: Path) -> str:
    """The hash that a sealed file ends with."""
    with open(file, "rb") as opened:
        opened.seek(-SEAL, os.SEEK_END)
        return opened.read().hex()


def joined(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The content of `file` with each sharded tensor as the `Parts` that its files have, which are mapped into memory and not read.

    Raises UserError where a part is missing, damaged, or of another checkpoint."""
    said = content.pop(SHARDS)
    name, seals = said["name"], said["seals"]
    if not NAME.fullmatch(str(name)):
        raise UserError(f"{file} is damaged: it names parts that this program has not written.")
    folder = file.parent / SHARDS / name
    files = [folder / f"{rank:04d}.ckpt" for rank in range(len(seals))]
    parts = [verified(part, digest, file) for part, digest in zip(files, seals, strict=True)]

    def together(place: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.device.type != "meta":
            return leaf
        found = Parts(tuple(part[place] for part in parts if place in part))
        if len(found.parts) != len(parts) or found.shape != tuple(leaf.shape) or {part.dtype for part in found.parts} != {leaf.dtype}:
            raise UserError(f"{folder} is damaged: its parts of {place} do not add up to what {file} says.")
        return found

    whole: dict[str, Any] = mapped(content, together)
    return whole


def verified(part: Path, digest: str, file: Path) -> dict[str, Tensor]:
    """A part's tensors, mapped into memory. Raises UserError as `joined` does."""
    if not part.is_file():
        raise UserError(f"{file} is a checkpoint in parts, and {part} is missing: they belong together in one folder.")
    try:
        if not broken(part) and seal_of(part) == digest:
            rows: dict[str, Tensor] = torch.load(part, map_location="cpu", weights_only=True, mmap=True)
            return rows
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{part} cannot be read as a part of a checkpoint ({type(error).__name__}); it is damaged.") from error
    raise UserError(f"{part} is damaged: its content is not what {file} was written with.")


def tidy(folder: Path) -> None:
    """Remove the parts that no checkpoint of a folder names any more, those of writers that were killed too. One that cannot be read may
    name any, so that nothing is removed."""
    kept = set()
    for file in (file for pattern in ("*.ckpt", "*.pt") for file in folder.glob(pattern)):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:  # just taken away
            continue
        except Exception:
            log.warning("%s cannot be read, and may name parts of its own: none are removed.", file)
            return
        said = content.get(SHARDS) if isinstance(content, dict) else None
        kept.add(said.get("name") if isinstance(said, dict) else None)
    for place in (folder / SHARDS).glob("*"):
        if NAME.fullmatch(place.name) and place.name not in kept:
            shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # there are others
        (folder / SHARDS).rmdir()


def local(tensor: Tensor) -> Tensor:
    """This device's rows of a tensor, in its memory; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_of(leaf: Any) -> Any:
    """A sharded tensor as the `Shard` of a checkpoint, anything else as it is."""
    return Shard(leaf.to_local(), tuple(leaf.shape)) if isinstance(leaf, DTensor) else leaf


def word_of_the_first(word: str) -> str:
    """The first process's word, on each."""
    words = [word]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(words)
    return words[0]


def all_or_none(act: Callable[[], Any]) -> list[Any]:
    """What `act` returns, of each process. If it fails on one, so it does on all, and none waits for another: there as it did, elsewhere
    with an OSError."""
    found, failed = None, None
    try:
        found = act()
    except Exception as error:
        failed = error
    outcomes: list[tuple[Any, str | None]] = [(found, None if failed is None else str(failed))]
    if (world := rank_and_world()[1]) > 1:
        outcomes *= world
        dist.all_gather_object(outcomes, outcomes[rank_and_world()[0]])
    if failed is not None:
        raise failed
    for rank, (_, reason) in enumerate(outcomes):
        if reason is not None:
            raise OSError(f"process {rank}: {reason}")
    return [made for made, _ in outcomes]
