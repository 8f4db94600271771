"""Files that commands have made, as data: what each says of how, and its images. Anybody may have written one."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from PIL import Image

from diffusion.album import FILES, OURS, RECORD
from diffusion.dashboard.files import json_again
from diffusion.dashboard.read import mapping
from diffusion.evaluation.rows import is_line
from diffusion.npz import DAMAGE, header
from diffusion.passport import finite
from diffusion.support.errors import UserError

LARGEST = 50_000_000  # bytes of what says how a thing was made
PIXELS = 2**26  # of a picture: no grid of ours has more
DEPTH = 50  # of what says how a thing was made; ours have some 10
AGAIN = ("sample", "evaluate")  # the commands whose things are made again
DAMAGED = "it is damaged, or not of a command of ours."


@dataclass(frozen=True)
class Thing:
    """Something that a command has made: the file, what is said of how, and by which words of which program. `name` is that of a
    picture in the folder that the command wrote, `label` says which line of a file it is."""

    path: Path
    said: Mapping[str, Any]
    program: str
    words: Any
    name: str = ""
    label: str = ""


def made_things(path: Path, line: int | None) -> list[Thing]:
    """What a file holds: images, a picture, or numbers, those of one line (from 1) or of all that a command has measured. Raises UserError
    for a file that says no command, and for what is no file of ours."""
    if path.is_dir():
        if not (path / RECORD).is_file():
            raise UserError(f"{path} holds no {RECORD}: give a folder of sample.py, or a file; a training is made again by training again.")
        path = path / RECORD
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    match path.suffix.lower():
        case ".jsonl":
            return numbers_of(path, line)
        case ".md" | ".csv" if path.with_suffix(".jsonl").is_file():  # a table of those lines
            return numbers_of(path.with_suffix(".jsonl"), line)
        case ".png":
            return [drawn_thing(path)]
        case ".json" | ".npz" | ".zip":
            said = recipe_of(path)
            return [thing(path, said, said.get("command"), programs=("sample",))]
    raise UserError(f"{path} is none of a recipe.json, an npz, a zip, a PNG, a file of lines and the table beside one: name one of these.")


def thing(path: Path, said: Mapping[str, Any], command: Any, name: str = "", label: str = "", programs: Collection[str] = AGAIN) -> Thing:
    """Raises UserError where no command is said, or one that is not run again, or not of the `programs` that make such a thing."""
    if not isinstance(command, dict) or not isinstance(command.get("program"), str) or not isinstance(words := command.get("words"), list):
        raise UserError(f"{path} does not say the words that made it: it is of an older version, or not of a command of ours.")
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: what should be the words of its command is no list of words; {DAMAGED}")
    program = command["program"]
    if program not in AGAIN or any(word.startswith("-") for word in words):
        what = "a table" if program in AGAIN else f"{program!r:.20}"
        remedy = "run the words of that command again" if label else "name a line of numbers, as FILE.jsonl:3, or run its words"
        raise UserError(f"{path}{label} was made by {what}, which is not run again here: {remedy}.")
    if program not in programs:
        raise UserError(f"{path}{label} says that {program} made it, which makes no such thing; {DAMAGED}")
    return Thing(path, said, program, words, name, label)


def recipe_of(path: Path) -> dict[str, Any]:
    """What is said of how images were made: in a recipe.json, an npz or a zip. Raises UserError for other files."""
    said = mapping_in(read_bytes(path), path) if path.suffix.lower() == ".json" else recipe_in(path)
    if said is None:
        raise UserError(f"{path} says no recipe: {DAMAGED}")
    return said


def recipe_in(path: Path) -> dict[str, Any] | None:
    """The recipe in an npz or a zip; None where there is none. Raises UserError for a damaged one, or one that takes more memory than its
    file."""
    name = FILES[path.suffix.lower()][0]
    try:
        with ZipFile(path) as archive:
            if name not in archive.namelist():
                return None
            if archive.getinfo(name).file_size > min(LARGEST, path.stat().st_size):  # ours are not compressed
                raise UserError(f"{path} says more than any file of ours: {DAMAGED}")
            with archive.open(name) as file:
                text = np.lib.format.read_array(file, allow_pickle=False).item() if name.endswith(".npy") else file.read()
    except (*DAMAGE, OSError):
        raise UserError(f"{path} says no recipe: {DAMAGED}") from None
    whole = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return mapping_in(whole, path) if whole.lstrip().startswith("{") else None  # a list or a number is another program's


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError for one that is too large."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is larger than any file of ours: {DAMAGED}")
    return path.read_bytes()


def mapping_in(text: str | bytes, path: Path) -> dict[str, Any]:
    """A mapping that is written as JSON, of numbers that are finite, or None. Raises UserError otherwise."""
    try:
        found = finite(json.loads(text))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not json_again(found, DEPTH):
        raise UserError(f"{path} does not hold what a command writes there: {DAMAGED}")
    return found


def drawn_thing(path: Path) -> Thing:
    """A PNG file. What is said of how, beside the command, is what a recipe.json of its folder says."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            require_pixels(image, path)
            image.load()
            text = getattr(image, "text", {}).get("command", "")
    except UserError:
        raise
    except Exception:  # Pillow raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read as a picture: {DAMAGED}") from None
    if not text:
        raise UserError(f"{path} does not say the words that made it: it is of an older version, or was written by another program.")
    command, beside = mapping_in(text, path), path.with_name(RECORD)
    said = recipe_of(beside) if beside.is_file() else {}
    name = command.get("file")
    return thing(path, said, command, name if isinstance(name, str) and Path(name).name == name else path.name)


def numbers_of(path: Path, line: int | None) -> list[Thing]:
    """The numbers of a line, or of all lines of `diffusion.evaluate`. Raises UserError for a line that has none."""
    texts = read_bytes(path).splitlines()
    if line is not None and not 1 <= line <= len(texts):
        raise UserError(f"{path} has {len(texts)} lines, and no line {line}.")
    if line is not None:
        return [measured_thing(path, mapping_in(texts[line - 1], path), line)]
    found = [(i, text) for i, text in enumerate(texts, 1) if b'"cell"' in text]
    if not found:
        raise UserError(f"{path} has no line of diffusion.evaluate: name one of a training's metrics, as {path}:3.")
    return [measured_thing(path, mapping_in(text, path), i) for i, text in found]


def measured_thing(path: Path, record: dict[str, Any], line: int) -> Thing:
    """A line's numbers; those of a training are measured again of its checkpoint of that step. Raises UserError for a line without any that
    can be."""
    passport, metric, step = (record.get(key) for key in ("passport", "metric", "step"))
    if not isinstance(passport, dict) or not isinstance(metric, str) or type(step) is not int:
        raise UserError(f"{path}:{line} has no metric: a loss is made by training again, and python -m diffusion.diff compares two runs.")
    said = {**record, "code": passport.get("code"), "device": passport.get("device"), "weights": passport.get("weights")}
    if "cell" in record:
        made = thing(path, said, record.get("command"), label=f":{line}", programs=("evaluate",))
        if not is_line(record):
            raise UserError(f"{path}:{line} is no line of diffusion.evaluate; {DAMAGED}")
        return made
    name, _, way = metric.partition("/")
    words = [f"ckpt=step={step:08d}.ckpt", *([f"way={way}"] if way else [])]
    words += [f"metric.n={passport['n']}"] if "@" in name and isinstance(passport.get("n"), int) else []
    around = mapping(path.with_name("environment.yaml"), [])  # the training's
    said["environment"] = {key: value for key, value in around.items() if key != "code"} or None
    return Thing(path, said, "evaluate", words, label=f":{line}")


def images_in(path: Path) -> np.ndarray:
    """The images of a folder's samples.npz, of an npz, or of a zip. Raises UserError for a file that has none."""
    file = path.with_name("samples.npz") if path.name == RECORD else path
    try:
        with ZipFile(file) as archive:
            names = sorted(name for name in archive.namelist() if OURS.fullmatch(name) and name.endswith(".png"))
            if sum(info.file_size for info in archive.infolist()) > file.stat().st_size:
                raise UserError(f"{file} is compressed, which no file of ours is: {DAMAGED}")
            if file.suffix.lower() == ".zip":
                return np.stack([levels_of(archive.open(name)) for name in names])
            with archive.open("images.npy" if "images.npy" in archive.namelist() else "arr_0.npy") as array:
                found: np.ndarray = np.lib.format.read_array(array, allow_pickle=False)
                return found
    except (*DAMAGE, OSError):
        raise UserError(f"{file} holds no images: {DAMAGED}") from None


def levels_of(file: Any) -> np.ndarray:
    """The pixels of a PNG file, uint8 [h, w, 3]. Raises OSError for another one, and UserError for one of too many pixels."""
    name = getattr(file, "name", file)
    try:
        with Image.open(file, formats=["PNG"]) as image:
            require_pixels(image, name)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        raise UserError(f"{name} has more pixels than any picture of ours: {DAMAGED}") from None


def require_pixels(image: Image.Image, name: Any) -> None:
    """Raises UserError for a picture, of which the header alone was read, of more pixels than any of ours."""
    if image.width * image.height > PIXELS:
        raise UserError(f"{name} has {image.width} x {image.height} pixels, more than any picture of ours: {DAMAGED}")


def count_in(path: Path) -> int | None:
    """How many images a file or a folder holds that a command made, by its names and headers; None where it does not say."""
    file = path.with_name("samples.npz") if path.name == RECORD else path
    try:
        with ZipFile(file) as archive:
            if file.suffix.lower() == ".zip":
                return sum(bool(OURS.fullmatch(name)) and name.endswith(".png") for name in archive.namelist())
            with archive.open("images.npy" if "images.npy" in archive.namelist() else "arr_0.npy") as array:
                return int(header(array)[0][0])
    except (*DAMAGE, IndexError, OSError):
        return None
