"""A command line run in a child of this process, as `python train.py WORDS` would be but for the seconds of imports, and judged."""

import os
import re
import resource
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from drawing import Command
from forks import ROOT, program, waited

OUTPUT = ("said", "err")
MEMORY, SECONDS = 4 * 2**30, 25  # of a command: of private memory, and of the processor
# What Python says of a mistake of its own; a sentence for the user is in other words.
PYTHONS = re.compile(
    r"Traceback|object has no|object is not|NoneType|positional argument|keyword argument|unsupported operand|not supported between|"
    r"list index|index out of range|invalid literal|could not convert|zero-size|\barg \d|must be real|can't allocate|maximum recursion|"
    r"division by zero|cannot unpack|expected str|Expected \w+ to|RuntimeError|size mismatch|KeyError|mat1|unhashable|broadcast"
)
CACHE = re.compile(r"(^|/)\.?\w+-\w+-[0-9a-f]{12}\b|\.lock$")  # a data set's, which is made whole or not at all and serves the next command


@dataclass(frozen=True)
class Outcome:
    """What came of a command: `wrong` says what should not be, or is empty."""

    line: str
    code: int | None
    said: str
    seconds: float
    wrong: str


def outcome(command: Command, words: list[str], here: Path, run: Path | None, train: bool = True) -> Outcome:
    """The outcome of a command in the folder `here`, which holds a copy of a run and is removed afterwards. With train=False all is built
    and nothing trained."""
    here.mkdir(parents=True)
    if run:
        shutil.copytree(run, here / "run")
    before, began = contents(here), time.monotonic()
    child = os.fork()
    if child == 0:
        _run(command, words, here, train)
    code = waited(child, began + 8 * SECONDS)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        code = None
    seconds = time.monotonic() - began
    said, err = ((here / name).read_text(errors="replace") if (here / name).exists() else "" for name in OUTPUT)
    after = contents(here)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name) and not CACHE.search(name))
    shutil.rmtree(here)
    return Outcome(f"python {command.program} {shlex.join(words)}", code, err.strip()[-3000:], seconds, judged(code, said, err, changed))


def contents(folder: Path) -> dict[str, bytes | None]:
    """The files of a folder, but for what was printed, and its sub-folders."""
    found = {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    return {name: content for name, content in found.items() if name not in OUTPUT}


def judged(code: int | None, said: str, err: str, changed: list[str]) -> str:
    """What is wrong with the end of a command, or an empty string: a success, or one sentence and nothing half-written."""
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if code is None:  # it takes long, which is no mistake
        return ""
    if "Traceback" in said + err:
        return "a traceback"
    if code == 0:
        return ""
    if code not in (1, 2):
        return f"exit code {code}"
    if not re.match(r"error: \w|error: .*\w+ \w+ \w+", last) or last.startswith("error: ;"):
        return "no sentence"
    if found := PYTHONS.search(last):
        return f"Python's words: {found.group()}"
    if len(last) > 1200:
        return f"a sentence of {len(last)} letters"
    began = "not enough memory" in last  # of which a training may have too little later on
    return f"half-written: {', '.join(changed[:5])}" if changed and not began else ""


def _run(command: Command, words: list[str], here: Path, train: bool) -> NoReturn:
    """The child."""
    os.setsid()
    os.chdir(here)
    os.environ |= {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}  # no downloads
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    if not train:
        from pytorch_lightning import Trainer

        Trainer.fit = lambda *given, **named: None
    module = command.program.removeprefix("-m ")
    begun = [str(ROOT / module)] if module == command.program else ["-m", module]
    program([*begun, *words], [here / name for name in OUTPUT])
