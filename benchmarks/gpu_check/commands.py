"""Running a command within a time: ended as Ctrl-C ends it when the time is over, and with the process that began it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.process import as_a_child

ROOT = Path(__file__).resolve().parents[2]
GRACE = {signal.SIGINT: 0.7, signal.SIGTERM: 0.3, signal.SIGKILL: 1.0}  # of the margin, for what each asks to be done


def run(
    line: Sequence[str],
    log: Path,
    until: float,
    margin: float,
    environment: Mapping[str, str],
    each: Callable[[], None] = lambda: None,
) -> int | None:
    """The exit code of a command in the checkout's root, whose output is added to `log`, or None where it was ended because the monotonic
    clock passed `until`, which takes `margin` seconds at most. `each` is called a few times a second meanwhile.

    It leads a group of processes, which gets SIGINT, as from a terminal, then SIGTERM, then SIGKILL. Where this process is killed, the
    command hears SIGINT too (on Linux)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {' '.join(line)}\n".encode())
        output.flush()
        kind = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(line, cwd=ROOT, env={**environment}, preexec_fn=as_a_child, **kind)
    try:
        while process.poll() is None:
            if time.monotonic() > until:
                return None
            each()
            time.sleep(0.2)
        return process.returncode
    finally:
        end(process, margin)


def end(process: subprocess.Popen, margin: float) -> None:
    """End what is left of a command's group, giving it the margin in which to end by itself."""
    for signum, share in GRACE.items():
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(share * margin)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what its leader left behind


def last_line(log: Path) -> str:
    """The last line that a command said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
