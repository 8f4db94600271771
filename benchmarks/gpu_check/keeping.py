"""What a machine gives back: few files, each under 15 MB."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

from diffusion.support.files import atomic

FILES = 8  # in all
LIMIT = 14_500_000  # bytes in an archive before it is compressed, so that it is under 15 MB whatever is in it


def pack(files: Sequence[Path], out: Path, limit: int = LIMIT) -> list[Path]:
    """Put files into kept-1.tar.gz, kept-2.tar.gz, ... of a folder, anew and the smallest first, as long as it then has no more than FILES.
    Returns those that no archive takes."""
    for old in out.glob("kept-*.tar.gz"):
        old.unlink()
    room = FILES - sum(path.is_file() for path in out.iterdir())
    left = sorted({file for file in files if file.is_file()}, key=lambda file: (file.stat().st_size, str(file)))
    for number in range(1, room + 1):
        inside, size = [], 0
        while left and size + (need := left[0].stat().st_size + 2048) <= limit:  # a name's block, and the last block filled up
            inside.append(left.pop(0))
            size += need
        if inside:
            with atomic(out / f"kept-{number}.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as archive:
                for file in inside:
                    archive.add(file, "/".join(file.parts[-2:]))
    return left
