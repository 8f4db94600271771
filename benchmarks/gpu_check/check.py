"""The parts, one after the other, each within its budget, and what they share."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu_check.commands import ROOT, last_line, run
from benchmarks.gpu_check.keeping import pack
from benchmarks.gpu_check.report import write
from benchmarks.gpu_check.sizes import Size, filled
from benchmarks.gpu_check.state import State

MARGIN = 20.0  # seconds at a budget's end in which a command may save what it has
Result = dict[str, Any]


class Overrun(Exception):
    """The part's time is over; the next call goes on."""


class Failed(Exception):
    """The part did not do what it should, in one sentence; the next call tries again what is not done."""


class Part(Protocol):
    """`run` does what is left to do and says in a few words what came out, or raises Overrun or Failed; `lines` is its section of the
    report, of whatever there is so far, and `files` what it leaves for the archive."""

    name: str
    title: str

    def run(self, check: "Check") -> str: ...

    def lines(self, check: "Check") -> Sequence[str]: ...

    def files(self, check: "Check") -> Sequence[Path]: ...


@dataclass
class Check:
    """One call of the command: `out` is for what is kept, small; `work` for runs, caches and logs."""

    out: Path
    work: Path
    device: str
    minutes: float
    size: Size
    data: Path | None
    state: State
    parts: Sequence[Part]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    part: str = ""
    until: float = 0.0

    @property
    def margin(self) -> float:
        return min(MARGIN, 6 * self.minutes)

    @property
    def left(self) -> float:
        """Seconds of this part."""
        return self.until - time.monotonic()

    @property
    def cache(self) -> Path:
        """What is made of data alone, which other code makes the same."""
        return self.work.parent / "cache"

    def stage(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of a stage of this part with the seconds that it took, made now unless it has been made."""
        stages = self.state.part(self.part)["stages"]
        if name not in stages:
            started = time.monotonic()
            result = work()
            stages[name] = {"seconds": round(time.monotonic() - started, 1), **result}
            self.tell()
        return stages[name]

    def ran(self, name: str, *line: str, each: Callable[[], None] | None = None, spare: float = 0.0) -> Path:
        """The log of this Python's command, which ended well. Raises Overrun or Failed."""
        log = self.work / "logs" / f"{self.part}-{name}.log"
        code = self.code(name, *line, each=each, spare=spare)
        if code:
            raise Failed(f"{name} ended with exit code {code}: {last_line(log)}")
        return log

    def code(self, name: str, *line: str, each: Callable[[], None] | None = None, spare: float = 0.0) -> int:
        """The exit code of this Python's command, which is to leave so many seconds of the part. Raises Overrun."""
        log = self.work / "logs" / f"{self.part}-{name}.log"
        code = run([sys.executable, *line], log, self.until - spare, self.margin, self.environment, each or (lambda: None))
        if code is None:
            raise Overrun(f"{name} was ended when the part's time was over; the same command goes on")
        return code

    def words(self, *words: str) -> list[str]:
        """Words of this size, the later ones in the place of the former of the same key."""
        return filled(words, self.minutes * self.size.share, self.data)

    def tell(self) -> None:
        """Write what there is."""
        self.state.save()
        write(self)

    def go(self, names: Sequence[str]) -> bool | None:
        """Do these parts, and say whether all went well; None where something is left to do."""
        for part in (part for part in self.parts if part.name in names):
            self.do(part)
        done = {self.state.part(name)["status"] for name in names}
        return False if "failed" in done else None if done - {"done"} else True

    def do(self, part: Part) -> None:
        """A part, unless it has been done."""
        entry = self.state.part(part.name)
        if entry["status"] == "done":
            print(f"{part.name}: done before, {entry['said']}", flush=True)
            return
        began, before, self.part = time.monotonic(), entry["seconds"], part.name
        self.until = began + 60 * self.minutes - self.margin
        entry["status"], entry["said"] = "left", "stopped on the way; the same command goes on"  # for as long as nothing else is known
        self.tell()
        try:
            entry["said"] = part.run(self)
            entry["status"] = "done"
        except Overrun as left:
            entry["said"] = str(left)
        except Failed as failure:
            entry["status"], entry["said"] = "failed", str(failure)
        except Exception as error:  # the others are to be done all the same
            traceback.print_exc()
            entry["status"], entry["said"] = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            entry["seconds"] = round(before + time.monotonic() - began, 1)
            self.tell()
            pack([file for one in self.parts for file in one.files(self)], self.out)
            print(f"{part.name}: {entry['status']}, {entry['said']} ({time.monotonic() - began:.0f} s)", flush=True)


def environment(site: Path | None) -> dict[str, str]:
    """That of the commands: this checkout's code first, and what came as wheels."""
    path = [str(ROOT), *([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(path)}
