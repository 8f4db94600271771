"""The rows of the table: `every(bench)` has them all, by name, in the order in which they run."""

from ..harness import Row
from ..work import Bench
from . import features, memory, ranks, sampling, startup, training

ROOMS = (training, sampling, memory, features, startup, ranks)


def every(bench: Bench) -> dict[str, Row]:
    """All rows of this size on this device."""
    return {row.name: row for room in ROOMS for row in room.rows(bench)}
