"""The signals by which a system or a user ends a training, and who heeds them."""

import os
import signal
import threading

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


def heed_the_parent_alone(worker: int = 0) -> None:
    """In a process that fetches data for a training: of these signals it heeds SIGTERM alone, and that from the process that started it.

    A cluster or a terminal sends them to all processes of a job. A worker that died of one would be an error in the training, which has
    heard it too, and saves its checkpoint while it is served. Where senders are not known (macOS, Windows) all is as it was."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
