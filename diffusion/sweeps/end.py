"""The beginning and the end of a sweep: its table, the dashboard of its runs, and one sentence about what failed."""

import atexit
import logging
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from diffusion.shell import disk_s_end, sentence
from diffusion.support.errors import UserError, refuse
from diffusion.support.files import lock, require_writable
from diffusion.sweeps.jobs import require_settings_of_a_word
from diffusion.sweeps.ledger import Ledger, sweep_name, swept_words

HELD = ExitStack()  # the lock of the sweep's name, until this process ends
PATIENCE = 20.0  # seconds for jobs in other processes to save and end
log = logging.getLogger(__name__)


class Sweep(Callback):
    """Hydra's hooks around a sweep, in the process that was started by its command; its jobs may be in others, which live longer than it
    does where it is `outlived`."""

    def __init__(self, outlived: bool = False) -> None:
        self.outlived, self.ended = outlived, False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """No rows yet. Refuses a sweep whose name another one has that is at work."""
        if int(os.environ.get("RANK", 0)):
            return
        setup_globals()
        HydraConfig.instance().set_config(config)
        try:
            with disk_s_end():
                self.begin(config, Path(config.hydra.sweep.dir))
        except Exception as error:  # of which Hydra makes a warning, and goes on
            if said := sentence(error):
                refuse(said)
            raise
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, stop)
        atexit.register(self.end, os.getpid())

    def begin(self, config: DictConfig, runs: Path) -> None:
        """The ledger. Raises UserError where there cannot be one."""
        require_settings_of_a_word(config)
        require_writable(runs, "paths.runs")
        ledger = Ledger(runs, name := sweep_name(config))
        try:
            HELD.enter_context(lock(ledger.holder, wait=False))
        except BlockingIOError:
            raise UserError(f"Another sweep of name={name} is at work: wait for its end, or give another name=NAME.") from None
        ledger.begin(shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]), self.outlived, [*swept_words(config)])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The table and, if a job failed, exit code 1."""
        ledger = Ledger.current()
        if ledger is None:
            return
        self.settle(ledger)
        self.end(os.getpid())
        rows = ledger.rows()
        if failed := [str(row["job"]) for row in rows if row["state"] != "done" and row["state"] != "skipped"]:
            refuse(f"Of {len(rows)} jobs {len(failed)} failed, job {', '.join(failed)}; why is said in {ledger.table}.")

    def end(self, pid: int) -> None:
        """Print the table, as it is, and write the dashboard; once, and not in a process that was forked from this one."""
        ledger = Ledger.current()
        if self.ended or ledger is None or os.getpid() != pid:
            return
        self.ended = True
        if not ledger.outlived():
            self.settle(ledger)
        if ledger.rows():
            print(ledger.table.read_text(), ledger.table, sep="\n", flush=True)
            draw_runs(ledger.table.parent)

    def settle(self, ledger: Ledger) -> None:
        """None is running any more."""
        for row in ledger.running():
            ledger.record(row | {"state": "stopped", "why": "its process ended without a word"})


def draw_runs(runs: Path) -> None:
    """The dashboard of all runs in a folder, where plotly is installed."""
    if find_spec("plotly") is None:
        print("no dashboard without plotly: pip install -e .[dashboard], then python -m diffusion.dashboard", runs)
        return
    from diffusion.dashboard.__main__ import write_page

    with suppress(UserError):  # there are no runs
        write_page(str(runs), runs / "dashboard.html", 40)


def stop(signum: int, _: object) -> None:
    """The handler of SIGTERM and SIGINT where no training of this process has its own: jobs in other processes on this machine are told to
    save and end, and waited for; then this one ends."""
    signal.signal(signum, signal.SIG_IGN)
    ledger, until = Ledger.current(), time.monotonic() + PATIENCE
    if ledger and not ledger.outlived():
        ledger.stop()
        while time.monotonic() < until and any(row["pid"] != os.getpid() for row in ledger.running()):
            time.sleep(0.1)
    signal.signal(signum, stop)
    sys.exit(128 + signum)
