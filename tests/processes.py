"""Processes that share nothing but the file system, as ranks would be on machines of their own."""

import json
import os
from pathlib import Path

from forks import FORKS

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
    said = [[folder / f"{rank}.{name}" for name in ("out", "err")] for rank in range(world)]
    ranks = [
        FORKS.start(
            ["-c", worker, str(rank), str(folder / "rendezvous"), *words, str(output)],
            Path.cwd(),
            environment | {"LOCAL_RANK": str(rank)},
            told,
        )
        for rank, (output, told) in enumerate(zip(outputs, said, strict=True))
    ]
    codes = [FORKS.wait(rank, timeout) for rank in ranks]
    errors = [err.read_text() for _, err in said]
    for pair in said:
        for file in pair:
            file.unlink()
    assert codes == [0] * world, (codes, *errors)
    return [json.loads(output.read_text()) for output in outputs]
