"""Command lines run in children of one process that has imported what all of them import, as `python WORDS` would run them but for those
seconds: `FORKS` is that process, `program` the inside of a child."""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
IMPORTED = ("diffusion.training.run", "diffusion.evaluation.cells", "diffusion.editing", "diffusion.pictures", "hydra.main")


def imports() -> None:
    """What all commands import."""
    for module in IMPORTED:
        importlib.import_module(module)


def program(words: Sequence[str], output: Sequence[Path], at_exit: Callable[[], None] = lambda: None) -> NoReturn:
    """In a child: FILE.py, -m MODULE or -c CODE, then its words; its standard output and error go to the two files. `at_exit` is called
    last: what Python itself would then call are also things of the process that forked, whose temporary folders would go."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(output, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = [*words[1:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(Path(words[0]).resolve()), *words[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        at_exit()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(child: int, until: float) -> int | None:
    """The exit code of a child that leads a group of processes, minus the signal for one that was killed; None, and the group killed, for
    one that is not done by `until`."""
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Forks:
    """A process that forks: started at the first command, and ended with this one, whose end closes its standard input."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def start(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], output: Sequence[Path]) -> int:
        """Begin a command line, and give the number of its process."""
        return self.asked("started", [*words], str(cwd), dict(environment), [str(path) for path in output])

    def wait(self, child: int, seconds: float) -> int | None:
        """Its exit code, or None for one that is not done by then and was killed."""
        return self.asked("ended", child, seconds)

    def asked(self, what: str, *given: Any) -> Any:
        if self.process is None:
            quiet = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}  # which is read once
            line = [sys.executable, __file__]
            self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        assert self.process.stdin and self.process.stdout
        print(json.dumps([what, *given]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def started(words: Sequence[str], cwd: str, environment: Mapping[str, str], output: Sequence[str]) -> int:
    """The child's number. Its modules are looked for where a new process would: beside the file, or in `cwd`, then in PYTHONPATH."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        first = cwd if words[0] in ("-m", "-c") else str(Path(words[0]).resolve().parent)
        sys.path[:1] = [first, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        program(words, [Path(path) for path in output], atexit._run_exitfuncs)  # this process has nothing but imports
    return child


def ended(child: int, seconds: float) -> int | None:
    return waited(child, time.monotonic() + seconds)


def serve() -> None:
    """The process of `Forks`: a line of JSON for each thing asked, and one for its answer."""
    answers = os.fdopen(os.dup(1), "w")
    sys.path[0] = str(ROOT)
    imports()
    for line in sys.stdin:
        what, *given = json.loads(line)
        print(json.dumps({"started": started, "ended": ended}[what](*given)), file=answers, flush=True)


FORKS = Forks()

if __name__ == "__main__":
    serve()
