"""How processes that train take turns: each trains a few steps to warm up and then waits, in every round for its turn.

In the process that trains, `Turns.step()` stands before each step. It and `process.Taking` share a folder: `turn` holds the number of
the last round that may run, -1 where that is the warming up (so that many may be started at once, and none is warmed by another's time),
`ready-RANK.jsonl` what the process says of itself when it is warm, and `rounds-RANK.jsonl` a line for each round done. Nothing but the
folder is shared, so that the ranks of one run take part as well."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

POLL = 0.002  # seconds between two looks
WARMING = -1  # the round before the first
PARENT = "BENCHMARK_PID"  # in the environment: the process that gives the turns


class Turns:
    """A process's part. `warmup` steps are free, then each round is of `steps` steps; `facts` is what it says of itself."""

    def __init__(self, folder: str | Path, warmup: int, steps: int, device: str = "cpu", rank: int = 0, **facts: Any) -> None:
        self.folder, self.warmup, self.steps, self.device, self.rank, self.facts = Path(folder), warmup, steps, device, rank, facts
        self.done = 0  # steps
        self.since = 0.0

    def step(self) -> None:
        """Before each step: where a round has ended, say so and wait for the next."""
        trained = self.done - self.warmup
        if self.done == 0:
            self.wait_for_turn(WARMING)
        self.done += 1
        if trained < 0 or trained % self.steps:
            return
        self.wait_for_device()
        now = time.perf_counter()
        if trained:
            self.say("rounds", "a", round=trained // self.steps - 1, seconds=now - self.since, steps=self.steps, **peak(self.device))
        else:
            self.say("ready", "w", pid=os.getpid(), threads=torch.get_num_threads(), torch=torch.__version__, **self.facts)
        self.wait_for_turn(trained // self.steps)
        self.since = time.perf_counter()

    def wait_for_turn(self, number: int) -> None:
        """Until this round may run; without end, unless there is nobody left to say so."""
        while self.turn() < number:
            if not alive(os.environ.get(PARENT)):
                os._exit(1)
            time.sleep(POLL)

    def wait_for_device(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def turn(self) -> int:
        """The last round that may run."""
        try:
            return int((self.folder / "turn").read_text())
        except FileNotFoundError:
            return WARMING - 1

    def say(self, what: str, mode: str, **facts: Any) -> None:
        """One line to this rank's file."""
        with (self.folder / f"{what}-{self.rank}.jsonl").open(mode) as file:
            file.write(json.dumps(facts) + "\n")


def alive(pid: str | None) -> bool:
    """Whether there is a process of this number; true if it is not said."""
    return pid is None or Path("/proc", pid).exists()


def peak(device: str) -> dict[str, float]:
    """The most memory so far in GiB: of the process, and on a GPU what its allocator has given out and has reserved."""
    resident = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    made = {"resident, GiB": resident / 2**20}
    if device.startswith("cuda"):
        made["allocated, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        made["reserved, GiB"] = torch.cuda.max_memory_reserved() / 2**30
    return made
