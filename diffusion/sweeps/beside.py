"""Jobs in processes of their own on this machine, between which and the sweep stands a process that is not of this package."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PATIENCE = 30.0  # seconds for a process that is still loading to see that it is not wanted


@contextmanager
def begun_beside() -> Iterator[None]:
    """The processes that are begun inside hear no SIGINT, which a terminal sends to all that a command has started: the process between
    would hand it on, by which a job has two and ends at once, and kill the job a second later. The sweep, which hears it, tells the jobs
    to save and end. When it leaves by a signal it waits for all of them, those too that have not come so far as to have a row."""
    left = threading.Event()
    threading.Thread(target=left.wait, daemon=True).start()  # in which the signal arrives: its mask is that of before
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    except SystemExit:
        wait_for_children()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        left.set()


def wait_for_children() -> None:
    """Wait until this process has no children, for some time."""
    until = time.monotonic() + PATIENCE
    with suppress(ChildProcessError):  # there are none
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
