"""Processes that share nothing but the file system, as ranks would be on machines of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def two_ranks(worker: str, folder: Path, *words: str, timeout: int = 120, world: int = 2) -> list:
    """What each of two (or `world`) ranks wrote as JSON: `worker` is Python code that is given rank, rendezvous file, `words`, and the file
    to write.

    It may import the test modules of tests/distributed. A rank that fails fails the test, with what it wrote on standard error. One whose
    work is done leaves at once: in Python's own end gloo's threads abort the process now and then, after the group was left."""
    worker += "\nimport os\nos._exit(0)\n"
    path = os.pathsep.join(map(str, (HERE.parent, HERE, HERE / "distributed")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    outputs = [folder / f"{rank}.json" for rank in range(world)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", worker, str(rank), str(folder / "rendezvous"), *words, str(output)],
            env=environment | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=timeout)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [json.loads(output.read_text()) for output in outputs]
