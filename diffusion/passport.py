"""What made a number, and the file the numbers are kept in."""

import errno
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from diffusion.support.files import appending, writable


@dataclass(frozen=True)
class Passport:
    """Everything that could change a metric's value. The first six fields, settings and intervals are `metric.passport()`.

    metric        name with n, as logged
    n             number of generated images
    quantisation  how images became what the extractor saw
    extractor     name, weights_hash, dim, resize
    reference     name, split, n and sha256 of the real images
    statistics    hash of the reference statistics as computed
    sampler       name and settings of sampler and grid
    nfe           network evaluations an image
    guidance      name and settings, or None
    ema           which average of the weights: its decay, or its relative length (post-hoc); None for the raw weights
    weights       hash of the weights, after averaging
    seeds         which seeds the images had, as plain data
    step          training step
    code          version of this package
    precision     what the network computed in: 32-true, bf16-mixed, ...
    device        kind of device: a seed's noise on the CPU is not that on a GPU
    conditions    how images got their conditions, if not the classes in turn
    codec         the autoencoder whose decoder made the images, with the hash of its weights; None for pixels
    images        of images that were there already, how many there are and their sha256; None for those that were made to be measured
    settings      what else the metric was told: subsets, neighbours, its own seed; None if there is nothing
    intervals     what the numbers NAME/error, NAME/std beside it mean, by their last word; None if there are none

    Values are plain data: numbers, strings, None, and lists and dicts of those.
    """

    metric: str
    n: int
    quantisation: str
    extractor: Mapping[str, Any]
    reference: Mapping[str, Any]
    statistics: str
    sampler: Mapping[str, Any]
    nfe: int
    guidance: Mapping[str, Any] | None
    ema: Mapping[str, Any] | float | None
    seeds: Mapping[str, Any] | list[int]
    step: int
    code: str
    precision: str = "32-true"
    device: str = "cpu"
    weights: str | None = None
    conditions: Mapping[str, Any] | None = None
    codec: Mapping[str, Any] | None = None
    images: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    intervals: Mapping[str, str] | None = None

    # An adaptive sampler's calls follow from the sampler and the weights.
    # One curve has many steps, each with its weights, of which an autoencoder's are a part, and may outlive a commit or move to another
    # machine. Statistics differ by rounding from machine to machine; what determines them is in `extractor` and `reference`. An interval
    # says how well a number is known.
    NOT_IN_ID: ClassVar[tuple[str, ...]] = ("step", "code", "statistics", "nfe", "intervals", "weights", "codec", "device", "images")

    @property
    def id(self) -> str:
        """12 hex digits: numbers with the same id were measured the same way and may share an axis."""
        # Fields at their default are left out, so that the ids of before a field existed stay the same.
        usual = {f.name: f.default for f in fields(self)}
        said = {name: value for name, value in asdict(self).items() if name not in self.NOT_IN_ID and value != usual[name]}
        return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """All fields and the id, ready for `write_metrics`."""
        return {"id": self.id, **asdict(self)}


@cache
def code_version() -> str:
    """The package's version, followed in a git checkout by the commit and, if files differ from it, "-dirty." and a hash of the package."""
    try:
        release = version("diffusion")
    except PackageNotFoundError:
        release = "0"
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository that happens to be above is not ours
        return release
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return release
    commit = result.stdout.strip()
    return f"{release}+{commit}.{source_hash()[:8]}" if commit.endswith("-dirty") else f"{release}+{commit}"


@cache
def source_hash() -> str:
    """16 hex digits of the sha256 of this package's code, whatever git says of it."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def write_metrics(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append `record` to `path` as one line of JSON, on the disk when this returns.

    The line is written in one call, and taken back where only a part of it fits on the disk. If a killed run left half a line at the
    end, that half is cut off first; a whole line that only lacks its newline is kept. Numbers that are not finite become null, since JSON
    has no word for them.
    One process writes at a time. Raises TypeError for values that are not plain data, OSError if the disk is full, UserError as `writable`.
    """
    line = (json.dumps(finite(record), allow_nan=False) + "\n").encode()
    path = writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        mend(file)
        with appending(path):
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file)
    finally:
        os.close(file)


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity in it replaced by None."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


def mend(file: int) -> None:
    """Make an open file of lines end in a newline: complete its last line if it is JSON, else cut it off."""
    end = os.lseek(file, 0, os.SEEK_END)
    start, tail = end, b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65536)
        tail = os.pread(file, end - start, start)
    last = tail.rpartition(b"\n")[2]
    if not last:
        return
    try:
        json.loads(last)
        os.write(file, b"\n")
    except ValueError:
        os.ftruncate(file, end - len(last))
