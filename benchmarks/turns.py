"""How processes that train take turns: each trains a few steps to warm up and then waits, in every round for its turn.

In the process that trains, `Turns.step()` stands before each step. It and `process.Taking` share a folder: the pipe `turn-RANK` gives
the number of a round that may run, -1 where that is the warming up (so that many may be started at once, and none is warmed by another's
time), `ready-RANK.jsonl` is what the process says of itself when it is warm, and `rounds-RANK.jsonl` has a line for each round done.
Nothing but the folder is shared, so that the ranks of one run take part as well. Who waits reads from a pipe, and takes nothing from the
cores: to look into a file every 2 ms takes 8 % of one."""

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

import torch

WARMING = -1  # the round before the first


class Turns:
    """A process's part. `warmup` steps are free, then each round is of `steps` steps; `facts` is what it says of itself."""

    def __init__(self, folder: str | Path, warmup: int, steps: int, device: str = "cpu", rank: int = 0, **facts: Any) -> None:
        self.folder, self.warmup, self.steps, self.device, self.rank, self.facts = Path(folder), warmup, steps, device, rank, facts
        self.done = 0  # steps
        self.free = int(device.startswith("cuda"))  # of a round, before those that are timed: the allocator is empty when it begins
        self.turn = WARMING - 1  # the last round that may run
        self.since = 0.0
        self.given: TextIO | None = None

    def step(self) -> None:
        """Before each step: where a round has ended, say so and wait for the next."""
        if self.done == 0:
            self.wait_for_turn(WARMING)
        number, within = divmod(self.done - self.warmup, self.free + self.steps)
        self.done += 1
        if number < 0 or within > self.free:
            return
        self.wait_for_device()
        if within == 0:
            self.between(number)
        if within == self.free:
            self.since = time.perf_counter()

    def between(self, number: int) -> None:
        """The round before this one has ended, or the warm-up; wait for this one's turn."""
        if number:
            seconds = time.perf_counter() - self.since
            self.say("rounds", "a", round=number - 1, seconds=seconds, steps=self.steps, **peak(self.device))
        else:
            self.say("ready", "w", pid=os.getpid(), threads=torch.get_num_threads(), torch=torch.__version__, **self.facts)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()  # the device is the others' meanwhile, and does not hold all trainings' memory at once
        self.wait_for_turn(number)

    def wait_for_turn(self, number: int) -> None:
        """Until this round may run; the process ends if there is nobody left to say so."""
        self.given = self.given or given(self.folder, self.rank)
        while self.turn < number:
            line = self.given.readline()
            if not line:
                os._exit(1)
            self.turn = int(line)

    def wait_for_device(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def say(self, what: str, mode: str, **facts: Any) -> None:
        """One line to this rank's file."""
        with (self.folder / f"{what}-{self.rank}.jsonl").open(mode) as file:
            file.write(json.dumps(facts) + "\n")


def given(folder: Path, rank: int) -> TextIO:
    """The pipe of this rank's turns, which ends when the process that gives them does, also if that was before now."""
    pipe = os.open(folder / f"turn-{rank}", os.O_RDONLY | os.O_NONBLOCK)  # to open it does not wait for its other end
    os.set_blocking(pipe, True)
    return os.fdopen(pipe)


def peak(device: str) -> dict[str, float]:
    """The most memory so far in GiB: of the process, and on a GPU what its allocator has given out and has reserved."""
    resident = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    made = {"resident, GiB": resident / 2**20}
    if device.startswith("cuda"):
        made["allocated, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        made["reserved, GiB"] = torch.cuda.max_memory_reserved() / 2**30
    return made
