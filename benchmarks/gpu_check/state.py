"""What has been done, in a file that is whole at any instant."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.commands import ROOT
from diffusion.support.errors import UserError
from diffusion.support.files import atomic

SOURCES = ("*.py", "diffusion/**/*.py", "conf/**/*.yaml", "benchmarks/**/*.py", "tests/**/*.py")


def sources_hash(root: Path = ROOT) -> str:
    """12 hex digits of the code, the configurations and the tests, where there may be no git and nothing is installed."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in SOURCES for file in root.glob(pattern)}):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class State:
    """state.json of a folder. `key` says of what it is (code, device, size): with another key all begins anew, and `before` is the key that
    was found. `parts` is, by part, its status, its seconds over all calls, what it said last, and the results of its stages."""

    def __init__(self, out: Path, key: Mapping[str, str]) -> None:
        self.file, self.key = out / "state.json", dict(key)
        found = self.found()
        self.before: dict[str, str] | None = None if found["key"] == self.key else found["key"]
        anew = {"key": self.key, "begun": datetime.now(UTC).isoformat(" ", "seconds"), "machine": {}, "parts": {}}
        self.content: dict[str, Any] = anew if self.before is not None else anew | found

    def found(self) -> dict[str, Any]:
        """What the file says. Raises UserError for one that no check has written, and for a folder of something else."""
        if not self.file.exists():
            if any(self.file.parent.iterdir()):
                raise UserError(f"--out {self.file.parent} is not empty, and no check has been there: say another folder.")
            return {"key": self.key}
        try:
            content = json.loads(self.file.read_text())
            assert isinstance(content["key"], dict)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f"{self.file} is damaged, or not a check's: take the folder away, or say another --out.") from None
        return content

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        return self.content["parts"]

    def part(self, name: str) -> dict[str, Any]:
        return self.parts.setdefault(name, {"status": "to do", "seconds": 0.0, "said": "", "stages": {}})

    def save(self) -> None:
        with atomic(self.file) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1))
