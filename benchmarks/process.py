"""The other side of turns: processes that are started, given rounds, and ended."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .harness import Absent
from .turns import WARMING

ROOT = Path(__file__).parent.parent
ABSENT = 66  # the exit code of a process that lacks a package
LOOK = 0.005  # seconds between two looks at a process that is timed from here
SELDOM = 0.05  # at one that times itself


PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)


def as_a_child() -> None:
    """In a process that was started from here, before it begins: Ctrl-C is heard even where this was begun in the background, and so is the
    end of the process that began it (on Linux)."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGINT)


class Started:
    """`python WORDS` in the repository's root, what it says in a file, in a group of processes of its own, to be ended whole."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.words, self.said = words, folder / "said.txt"
        given = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "HF_HUB_OFFLINE": "1",
            "HYDRA_FULL_ERROR": "0",
            **environment,
        }
        with self.said.open("w") as file:
            self.began = time.perf_counter()
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=as_a_child,
            )

    def until(self, there: Callable[[], Any], limit: float, every: float = LOOK) -> Any:
        """What `there()` is, as soon as it is something. Raises Absent or RuntimeError if the process ends first, or the limit passes."""
        asked = time.perf_counter()
        while not (found := there()):
            code = self.process.poll()
            if code is not None and not (found := there()):
                last = " ".join([line for line in self.said.read_text().splitlines() if line.strip()][-3:])
                raise Absent(last) if code == ABSENT else RuntimeError(f"it ended with {code}: {last}")
            if time.perf_counter() - asked > limit:
                raise RuntimeError(f"nothing after {limit:.0f} s: python {' '.join(self.words)[:200]}")
            time.sleep(every)
        return found

    def elapsed(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self.began

    def ended(self, limit: float) -> float:
        """Wait until it has ended well; how many seconds that took since it was started. Raises as `until`."""
        return self.until(lambda: self.process.poll() == 0 and self.elapsed(), limit)

    def end(self) -> None:
        """End it with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Taking:
    """One or more processes (`ranks` of each that `words` starts) that run one round together; see `turns`."""

    def __init__(
        self,
        folder: Path,
        starts: Sequence[Sequence[str]],
        ranks: int = 1,
        environment: Mapping[str, str] = {},
        limit: float = 1800,
    ) -> None:
        self.limit, self.round = limit, WARMING
        self.folders = [folder / str(i) for i in range(len(starts))]
        told = [[word.format(turns=at) for word in words] for words, at in zip(starts, self.folders, strict=True)]
        self.givers = [Giver(at, ranks) for at in self.folders]
        self.processes = [Started(words, at, environment) for words, at in zip(told, self.folders, strict=True)]
        self.ranks = [(p, at, rank) for p, at in zip(self.processes, self.folders, strict=True) for rank in range(ranks)]

    def warm(self) -> list[dict[str, Any]]:
        """Let them, and return what each says of itself when it is."""
        return [line for (line,) in self.told("ready", 1)]

    def __call__(self) -> list[dict[str, Any]]:
        """A round of all at once: each one's line."""
        return [found[-1] for found in self.told("rounds", self.round + 1)]

    def told(self, what: str, count: int) -> list[list[dict[str, Any]]]:
        """Give all the next turn, and return each one's lines when there are so many."""
        for giver in self.givers:
            giver.give(self.round)
        self.round += 1
        said = [(process, at / f"{what}-{rank}.jsonl") for process, at, rank in self.ranks]
        return [process.until(lambda file=file: lines(file, count), self.limit, SELDOM) for process, file in said]

    def end(self) -> None:
        """All of them."""
        for process in self.processes:
            process.end()
        for giver in self.givers:
            giver.end()


@contextmanager
def taking(*given: Any, **settings: Any) -> Iterator[Taking]:
    """`Taking`, ended after the context."""
    taken = Taking(*given, **settings)
    try:
        yield taken
    finally:
        taken.end()


class Giver:
    """The other end of the pipes of `turns`, one for each rank."""

    def __init__(self, folder: Path, ranks: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(ranks):
            os.mkfifo(folder / f"turn-{rank}")
        self.pipes = [os.open(folder / f"turn-{rank}", os.O_RDWR) for rank in range(ranks)]  # read too: it waits for nobody

    def give(self, number: int) -> None:
        """Say that the round of this number may run."""
        for pipe in self.pipes:
            os.write(pipe, f"{number}\n".encode())

    def end(self) -> None:
        """Nobody says so any more."""
        for pipe in self.pipes:
            os.close(pipe)


def lines(file: Path, count: int) -> list[dict[str, Any]]:
    """The lines of a file, if there are so many whole ones."""
    if not file.exists():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in whole] if len(whole) >= count else []


def absent(reason: object) -> None:
    """End this process as one that lacks a package."""
    print(reason, flush=True)
    sys.exit(ABSENT)
