"""Files in pieces small enough to be carried, and together again: NAME.00, NAME.01, ... and pieces.json, which says what they are.

python -m benchmarks.gpu_check.pieces split ROOT FOLDER cifar10 resnet_cifar10      # of a data root, these parts
python -m benchmarks.gpu_check.pieces join FOLDER ROOT"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import atomic

LIST = "pieces.json"
SIZE = 59_000_000  # bytes
BLOCK = 2**20


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split(root: Path, folder: Path, parts: Sequence[str] = (), size: int = SIZE) -> list[Path]:
    """Cut the files of a data root, or of these of its parts, into pieces of at most `size` bytes.

    Raises UserError for a part that is not there, and where there is nothing to cut."""
    for part in parts:
        if not (root / part).exists():
            raise UserError(f"{root} has no {part}: say what of it to carry.")
    files = sorted({file for part in parts or (".",) for file in [root / part, *(root / part).rglob("*")] if file.is_file()})
    if not files:
        raise UserError(f"There is no file in {root} to cut into pieces.")
    folder.mkdir(parents=True, exist_ok=True)
    listed, made = {}, []
    for number, file in enumerate(files):
        pieces = {}
        with file.open("rb") as stream:
            while (content := stream.read(size)) or not pieces:
                piece = folder / f"{number}-{file.name}.{len(pieces):02d}"
                piece.write_bytes(content)
                pieces[piece.name] = sha256(piece)
                made.append(piece)
        listed[file.relative_to(root).as_posix()] = {"sha256": sha256(file), "pieces": pieces}
    with atomic(folder / LIST) as temporary:
        temporary.write_text(json.dumps(listed, indent=1))
    return made


def join(folder: Path, root: Path) -> Path:
    """The files that the pieces of a folder make, in a root; those that are there and right are left. A piece may lie deeper in the folder.

    Raises UserError for a piece that is missing or is not what the list says, before anything of its file is written, and for a list that
    would have a file outside the root."""
    try:
        listed = json.loads((folder / LIST).read_text())
        files = {name: (entry["sha256"], dict(entry["pieces"])) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / LIST} is no list of pieces ({error}).") from None
    found = {path.name: path for path in folder.rglob("*") if path.is_file()}
    for name, (whole, pieces) in files.items():
        target = root / name
        if not target.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{folder / LIST} names {name}, which is outside of {root}.")
        if target.is_file() and sha256(target) == whole:
            continue
        for piece, digest in pieces.items():
            if piece not in found:
                raise UserError(f"The piece {piece} of {name} is not in {folder}: carry it there.")
            if sha256(found[piece]) != digest:
                raise UserError(f"The piece {found[piece]} is not what {LIST} says, by its sha256: carry it again.")
        with atomic(target) as temporary:
            with temporary.open("wb") as stream:
                for piece in pieces:
                    with found[piece].open("rb") as part:
                        shutil.copyfileobj(part, stream, BLOCK)
            if sha256(temporary) != whole:
                raise UserError(f"The pieces of {name} are each right, and the file they make is not, by its sha256: cut it again.")
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cut, joined = commands.add_parser("split"), commands.add_parser("join")
    cut.add_argument("source", type=Path)
    cut.add_argument("target", type=Path)
    cut.add_argument("parts", nargs="*")
    joined.add_argument("source", type=Path)
    joined.add_argument("target", type=Path)
    args = parser.parse_args()
    with one_sentence():
        if args.command == "split":
            made = split(args.source, args.target, args.parts)
            print(f"{len(made)} pieces and {LIST} in {args.target}")
        else:
            print(f"joined in {join(args.source, args.target)}")


if __name__ == "__main__":
    main()
