"""What of a machine a process of a sweep may use where several are at work: GPUs of its own, if there are any, else cores."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

from diffusion.support.files import lock
from diffusion.support.host import gpus

HOLDING = ExitStack()  # this process's place, for as long as it lives
TAKEN: list[int] = []


def share_of(place: int, at_once: int, among: list[str]) -> list[str]:
    """The GPUs of place 0 <= place < at_once: as many for each as there are, and one for several where there are fewer."""
    each = len(among) // at_once
    return among[place * each : (place + 1) * each] if each else [among[place % len(among)]] if among else []


def take_share(at_once: int, folder: Path) -> None:
    """Give this process, one of `at_once`, a place that no other one has, and with it GPUs, before torch looks for them; once. Places are
    locks in `folder`, so that one whose process has ended, however it did, is free. A process takes several jobs one after another, and
    those of one job may take longer, so that GPUs go by process and not by the jobs' numbers.

    Cores are shared out by joblib: OMP_NUM_THREADS is their number over that of the jobs at once, unless it is set."""
    if TAKEN:
        return
    for place in range(10 * at_once):  # those of a sweep that was killed may still be held
        try:
            HOLDING.enter_context(lock(folder / f"{socket.gethostname()}-{place}.place", wait=False))
        except BlockingIOError:
            continue
        TAKEN.append(place % at_once)
        break
    if TAKEN and (own := share_of(TAKEN[0], at_once, gpus())):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
