"""Captions of a folder's pictures, as the field lays them out: metadata.jsonl or metadata.csv, or a .txt file beside each picture."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from diffusion.support.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
_NAMED = 3  # names that a sentence gives


def caption_files(pictures: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """Those of the `others` that hold captions of the pictures: files of METADATA, and only without one the .txt files with a picture's
    name."""
    metadata = [path for path in others if path.name in METADATA]
    names = {path.with_suffix("") for path in pictures}
    return metadata or [path for path in others if path.suffix == ".txt" and path.with_suffix("") in names]


def read_captions(folder: Path, files: Sequence[Path], pictures: Sequence[Path], column: str) -> list[str]:
    """The caption of each picture, "" where there is none. `files` are those of `caption_files`, and all paths are relative to the folder.

    In Hugging Face's imagefolder layout each line of a metadata file has a `file_name`, relative to its own folder, and the caption in
    `column`. A .txt file is one caption. All are UTF-8; spaces around a caption are left out.

    Raises UserError: a file that is not UTF-8 or cannot be read as what it is, no such column, names that are not those of pictures (the
    first ones are named), a picture that is named twice."""
    texts = {path: text_of(folder, path) for path in files}
    if files and files[0].name in METADATA:
        found = of_metadata(folder, texts, column)
    else:
        stems = {path.with_suffix(""): text for path, text in texts.items()}
        found = {picture: stems.get(picture.with_suffix(""), "") for picture in pictures}
    if strangers := [str(path) for path in found if path not in set(pictures)]:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        raise UserError(
            f"The captions in {folder} are of {', '.join(strangers[:_NAMED])}{more}, which are no pictures there: correct file_name, which "
            "is relative to the folder of its metadata file, or bring the pictures."
        )
    return [found.get(picture, "").strip() for picture in pictures]


def of_metadata(folder: Path, texts: Mapping[Path, str], column: str) -> dict[Path, str]:
    """Picture -> caption, from metadata files and their texts."""
    found: dict[Path, str] = {}
    for file, text in texts.items():
        for place, row in metadata_rows(folder / file, text):
            if missing := [name for name in ("file_name", column) if name not in row]:
                raise UserError(
                    f"{place} has no {missing[0]} but {', '.join(map(str, row))}: each line has the picture's file_name and its caption in "
                    f"{column}; another column is chosen by dataset.caption."
                )
            picture = Path(normpath(file.parent / str(row["file_name"])))
            if picture in found:
                raise UserError(f"{place} names {picture} a second time: leave one caption to each picture.")
            found[picture] = caption(row[column], place)
    return found


def metadata_rows(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    """Each row of a metadata file by column, with its place in words. Raises UserError for a line that is no JSON object, or no CSV."""
    if path.suffix == ".csv":
        try:
            names, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row] or [[]]
        except csv.Error as error:
            raise UserError(f"{path} is no CSV ({error}): put captions with commas or quotes between quotes, and double those.") from error
        for i, row in enumerate(rows, 1):
            if len(row) != len(set(names)):
                raise UserError(
                    f"Row {i} of {path} has {len(row)} columns, and its first line names {', '.join(names)}: name each once, and put "
                    "captions with commas between quotes."
                )
            yield f"Row {i} of {path}", dict(zip(names, row, strict=True))
        return
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"Line {i} of {path} is no JSON ({error}): write one object in each line.") from error
        if not isinstance(row, dict):
            raise UserError(f'Line {i} of {path} is no JSON object: write {{"file_name": "a.png", "text": "its caption"}}.')
        yield f"Line {i} of {path}", row


def caption(value: Any, place: str) -> str:
    """A caption as it was written; none for null. Raises UserError for what is no text, or no Unicode."""
    if value is None:
        return ""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):  # half of a pair, which JSON can spell
        raise UserError(f"{place} has a caption that is no text, {value!r}: choose another column by dataset.caption.")
    return value


def text_of(folder: Path, path: Path) -> str:
    """The text of a file. Raises UserError for one that cannot be read, or is not UTF-8."""
    try:
        return decoded((folder / path).read_bytes(), str(folder / path))
    except OSError as error:
        raise UserError(f"The captions in {folder / path} cannot be read ({error.strerror}): repair it or take it away.") from error


def decoded(content: bytes, place: str) -> str:
    """UTF-8, with or without a mark at its beginning, as text. Raises UserError for bytes that are not."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is not UTF-8 (the byte {content[error.start]:#04x} at {error.start}): save its captions as UTF-8."
        ) from error
