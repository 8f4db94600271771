"""The table of peers: the benchmark's own command, in a process."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.check import Check, Failed, Overrun
from benchmarks.gpu_check.report import table
from diffusion.support.files import atomic

STOPPED = "stopped"  # what a row that was ended says it died of
WHOLE = 0.7  # of a part's minutes: a row that had as much had all that there is beside the margin and the list of rows
ENDED = (0, 1, 130)  # its codes: all well, a row died of itself, stopped


@dataclass(frozen=True)
class Bench:
    """The rows that `--list` names, into results.json beside the report as they come; those that are in it are not measured again."""

    name: str = "bench"
    title: str = "table of peers"

    def file(self, check: Check) -> Path:
        return check.out / "results.json"

    def run(self, check: Check) -> str:
        listed = check.stage("rows", lambda: {"names": names(check.ran("rows", *check.size.bench, "--device", check.device, "--list"))})
        while left := [name for name in listed["names"] if not done(rows(self.file(check)).get(name, {}))]:
            self.measured(check, left)
        found = rows(self.file(check))
        died = [name for name in listed["names"] if found[name]["died"]]
        said = (
            f"{len(found) - len(died)} rows, {sum(goal(ratio) == 'no' for row in found.values() for ratio in row['ratios'])} goals missed"
        )
        if died:
            raise Failed(f"{said}; died: {', '.join(died)}")
        return said

    def measured(self, check: Check, left: list[str]) -> None:
        """Measure these, or as many as a process lives through; last the row that the last call was stopped in. One that was stopped though
        it had nearly the whole of the part is not tried again, so that each call brings the table further. Raises Failed where one says
        nothing, and Overrun."""
        fresh, before, whole = check.work / "bench.json", rows(self.file(check)), check.left > WHOLE * 60 * check.minutes
        left = sorted(left, key=rows(fresh).keys().__contains__)  # a row of it that is left was stopped

        def take() -> None:
            if new := rows(fresh):
                self.keep(check, before | {name: row for name, row in new.items() if done(row)})

        fresh.unlink(missing_ok=True)
        try:
            line = [*check.size.bench, "--device", check.device, "--out", str(fresh), "--rows", *left]
            code = check.code("table", *line, each=take)
        except Overrun:
            if whole and stopped(rows(fresh).get(left[0], {})):
                why = f"it takes longer than the {check.minutes:g} minutes of a part: say more --minutes, and another --out"
                before[left[0]] = {"ratios": [], "absent": {}, "died": why}
            raise
        finally:
            take()
        if code not in ENDED:
            first = next(name for name in left if name not in rows(fresh))
            why = {"ratios": [], "absent": {}, "died": f"its process ended with exit code {code}"}
            self.keep(check, rows(self.file(check)) | {first: why})
        elif not any(name in rows(self.file(check)) for name in left):
            raise Failed(f"the table ended with exit code {code} and no row; its log is {check.work / 'logs/bench-table.log'}")

    def keep(self, check: Check, found: dict[str, Any]) -> None:
        if found != rows(self.file(check)):
            fresh = check.work / "bench.json"
            facts = json.loads(fresh.read_text()) if fresh.exists() else {}
            with atomic(self.file(check)) as temporary:
                temporary.write_text(json.dumps({**facts, "rows": found}, indent=1))
            check.tell()

    def lines(self, check: Check) -> Sequence[str]:
        cells = []
        for name, row in rows(self.file(check)).items():
            cells += [
                [name, r["name"], three(r["median"]), f"{three(r['low'])} to {three(r['high'])}", r["goal"] or "", goal(r)]
                for r in row["ratios"]
            ]
            cells += [[name, f"without {side}", "", "", "", reason[-200:]] for side, reason in row["absent"].items()]
            cells += [[name, "", "", "", "", row["died"]]] if row["died"] else []
        return table(["row", "ratio", "median", "range", "goal", "met"], cells) or ["No row yet."]

    def files(self, check: Check) -> list[Path]:
        return [check.work / "logs" / "bench-table.log"]


def names(log: Path) -> list[str]:
    """The rows' names, the first word of each line after the command itself."""
    said = log.read_text().rpartition("\n$ ")[2] if "\n$ " in log.read_text() else log.read_text()
    return re.findall(r"^([a-z][\w-]*) +\w", said.partition("\n")[2], re.M)  # and no warning


def rows(file: Path) -> dict[str, Any]:
    """What came of each row, in a file of results."""
    return json.loads(file.read_text())["rows"] if file.exists() else {}


def done(row: dict[str, Any]) -> bool:
    """Whether a row came to an end of its own."""
    return bool(row) and not stopped(row)


def stopped(row: dict[str, Any]) -> bool:
    """Whether a row was ended on the way."""
    return bool(row) and (row["died"] or "").startswith(STOPPED)


def goal(ratio: dict[str, Any]) -> str:
    """Whether a ratio reaches its goal, in a word; nothing where it has none."""
    return {True: "yes", False: "no", None: ""}[ratio["met"]]


def three(value: float) -> str:
    return f"{value:.3g}"
