"""A GPU check of parts that are made up."""

from dataclasses import dataclass, field

from benchmarks.gpu_check.check import Check, environment
from benchmarks.gpu_check.sizes import SMALL
from benchmarks.gpu_check.state import State

KEY = {"code": "1", "device": "cpu", "size": "small"}


@dataclass(eq=False)
class Made:
    """A part that does as it is told, and counts how often."""

    work: object = lambda check: "well"
    name: str = "made"
    calls: list = field(default_factory=list)

    @property
    def title(self):
        return f"the part {self.name}"

    def run(self, check):
        self.calls.append(self.name)
        return self.work(check)

    def lines(self, check):
        return [f"Called {len(self.calls)} times."]

    def files(self, check):
        return []


def checked(folder, *parts, minutes=0.1, key=KEY, chosen=SMALL):
    """A check of these parts in a folder, as a new call of the command makes it."""
    (folder / "out").mkdir(exist_ok=True)
    state = State(folder / "out", key)
    return Check(folder / "out", folder / "work" / "1", "cpu", minutes, chosen, None, state, parts, environment(None))


def report(folder):
    """The report, which is whole: a title, each part's row, and no table cut short."""
    text = (folder / "out/report.md").read_text()
    assert text.startswith("# ") and text.endswith("\n") and "| part | status |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    return text
