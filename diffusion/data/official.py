"""Published files: found where people keep them, downloaded where they are absent, used only if their md5 is right."""

import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.support.errors import UserError
from diffusion.support.files import atomic

_DAMAGE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError)


@dataclass(frozen=True)
class Form:
    """One published form of a split.

    title: what to call it in a sentence.
    md5: the digest of each member's uncompressed bytes, by member name, in reading order.
    places: the folders and tar archives (.tar, .tar.gz, .tar.xz), relative to root, that may hold the members. In a
        folder a member may be compressed, as <name>.gz.
    parse: images and labels from the members' bytes, which have passed their md5.
    """

    title: str
    md5: Mapping[str, str]
    places: tuple[str, ...]
    parse: Callable[[Mapping[str, bytes]], Iterator[Chunk]]


@dataclass(frozen=True)
class Download:
    """A file of the official site: the addresses to try in turn and the md5 of the file as downloaded."""

    filename: str
    urls: tuple[str, ...]
    md5: str


@dataclass(frozen=True)
class Official(PictureDataset):
    """A data set of published files, in any of its forms; the defaults that its class declares are the facts."""

    forms: ClassVar[Mapping[str, tuple[Form, ...]]]
    """By split, in the order of search."""
    downloads: ClassVar[Mapping[str, tuple[Download, ...]]]
    """By split; saved as root/<name>/<filename>, where one of the forms looks."""

    def key(self) -> Any:
        return [dict(form.md5) for form in self.forms[self.split]]

    def read(self) -> tuple[str, Iterator[Chunk]]:
        forms = self.forms[self.split]
        root = Path(self.root).expanduser().absolute()
        found = _locate(root, forms)
        if found is None:
            _download(self.name, root, forms, self.downloads[self.split])
            found = _locate(root, forms)
        if found is None:
            raise UserError(f"{_absent(self.name, root, forms)}: point dataset.root at the folder that holds them.")
        form, place = found
        return f"{form.title} in {place}", form.parse(_members(place, form.md5))


def _locate(root: Path, forms: tuple[Form, ...]) -> tuple[Form, Path] | None:
    for form in forms:
        for place in (root / relative for relative in form.places):
            if place.is_file() or all(_member(place, name) for name in form.md5):
                return form, place
    return None


def _member(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _members(place: Path, md5: Mapping[str, str]) -> dict[str, bytes]:
    members = _from_archive(place, md5) if place.is_file() else {name: _from_folder(place, name) for name in md5}
    for name, digest in md5.items():
        if name not in members:
            raise UserError(_damaged(place, f"{name} is not in it"))
        if hashlib.md5(members[name], usedforsecurity=False).hexdigest() != digest:
            raise UserError(_damaged(_member(place, name) or place, f"{name} is not the official file, by its md5"))
    return {name: members[name] for name in md5}


def _from_archive(path: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    """Read the members in one pass, since going back in a compressed archive means decompressing it again."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for entry in archive:
                name = Path(entry.name).name
                if entry.isfile() and name in names and (file := archive.extractfile(entry)):
                    members[name] = file.read()
                if len(members) == len(names):
                    break
    except _DAMAGE as error:
        raise UserError(_damaged(path, str(error))) from error
    return members


def _from_folder(folder: Path, name: str) -> bytes:
    path = _member(folder, name) or folder / name
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except _DAMAGE as error:
        raise UserError(_damaged(path, str(error))) from error


def _download(name: str, root: Path, forms: tuple[Form, ...], downloads: tuple[Download, ...]) -> None:
    absent = _absent(name, root, forms)
    for download in downloads:
        target = root / name / download.filename
        if not target.exists() and (failures := _try(download, target)):
            raise UserError(
                f"{absent}, and the download failed ({'; '.join(failures)}): put them there by "
                "hand, point dataset.root at the folder that holds them, or run once where there is a network."
            )


def _try(download: Download, target: Path) -> list[str]:
    """Download from the first address that works; return the failures if none does."""
    from torchvision.datasets.utils import download_url  # a second to import, and seldom needed

    failures = []
    for url in download.urls:
        try:
            with atomic(target) as temporary:
                download_url(url, temporary.parent, temporary.name, download.md5)
            return []
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError is a wrong md5
            failures.append(f"{url}: {error}")
    return failures


def _absent(name: str, root: Path, forms: tuple[Form, ...]) -> str:
    if not root.is_dir():
        return f"The folder {root}, where the files of {name} should be, does not exist"
    for form in forms:
        for place in (root / relative for relative in form.places):
            missing = [member for member in form.md5 if not _member(place, member)]
            if len(missing) < len(form.md5):
                return f"{', '.join(missing)} of {name} is missing from {place}"
    places = ", ".join(dict.fromkeys(place or "." for form in forms for place in form.places))
    return f"The files of {name} are not under {root} (looked in {places})"


def _damaged(path: Path, detail: str) -> str:
    return f"{path} is damaged or incomplete ({detail}): delete it and run again, or put the official file in its place."
