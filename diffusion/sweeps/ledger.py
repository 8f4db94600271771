"""What the jobs of a sweep have come to: lines of JSON that all of its processes append to, and the table that is made of them."""

import csv
import io
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from diffusion.dashboard.read import read_run
from diffusion.support.files import atomic, lock

HERE = "DIFFUSION_SWEEP"  # the environment's name for the file, by which the processes of a sweep find it
HIDDEN = ".sweeps"  # in the folder of a sweep's runs: its lines, and the locks of its jobs
NAMED = ("loss", "loss/accuracy", "heldout")  # numbers of a run beside those of its metrics, which have an @


class Ledger:
    """The rows of one sweep, at RUNS/.sweeps/NAME.jsonl, and its table, at RUNS/NAME.md and .csv, which are new after each row: what was
    done before a sweep was killed can be read."""

    def __init__(self, runs: Path, name: str) -> None:
        self.file, self.table = runs / HIDDEN / f"{name}.jsonl", runs / f"{name}.md"

    @classmethod
    def current(cls) -> Self | None:
        """That of the sweep which this process works for; None for another rank of torchrun, whose first one speaks for all."""
        place = os.environ.get(HERE)
        return cls(Path(place).parents[1], Path(place).stem) if place else None

    def begin(self, command: str) -> None:
        """No rows yet, and the processes that this one starts find it."""
        with self.alone():
            self.file.write_text(json.dumps({"command": command}) + "\n")
        os.environ[HERE] = str(self.file.resolve())

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row, which replaces that of the same job, and write the table."""
        place = {"pid": os.getpid(), "host": socket.gethostname()}
        with self.alone():
            torn = not self.file.read_bytes().endswith(b"\n")  # by a process that was killed as it wrote
            with self.file.open("a") as file:
                file.write("\n" * torn + json.dumps({**row, **place}) + "\n")
            rows = self.rows()
            for path, text in ((self.table, as_markdown(rows, self.command())), (self.table.with_suffix(".csv"), as_csv(rows))):
                with atomic(path) as temporary:
                    temporary.write_text(text)

    def alone(self) -> Any:
        """The lock of the rows."""
        return lock(self.file.with_suffix(".lock"))

    def command(self) -> str:
        """The sweep's command."""
        return str(json.loads(self.file.read_text().splitlines()[0])["command"])

    def rows(self) -> list[dict[str, Any]]:
        """The last row of each job, in the order of their numbers."""
        found = [row for line in self.file.read_text().splitlines()[1:] if (row := row_of(line))]
        return [row for _, row in sorted({row["job"]: row for row in found}.items())]

    def running(self) -> list[dict[str, Any]]:
        """The rows of jobs that have begun and not ended."""
        return [row for row in self.rows() if row["state"] == "running"]


def row_of(line: str) -> dict[str, Any] | None:
    """The row of a line; None for a part of one, which is being written or was left by a process that was killed."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


def results(place: str) -> dict[str, Any]:
    """The last step of a run, its seconds of training, and its last numbers with their errors; empty for a place that is none, or
    holds no numbers."""
    folder = Path(place)
    if not place or not (folder / "metrics.jsonl").is_file():
        return {}
    run = read_run(folder)
    numbers = {key: found.values[-1] for key, found in run.series.items() if key in NAMED or "@" in key}
    seconds = [value for value in run.seconds if math.isfinite(value)]
    return {"step": run.steps[-1] if run.steps else 0, "seconds": round(max(seconds, default=0.0), 1), "numbers": numbers}


def varied(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose words are not the same in all rows."""
    keys = dict.fromkeys(key for row in rows for key in row["words"])
    return [key for key in keys if len({row["words"].get(key) for row in rows}) > 1]


def outcome(row: Mapping[str, Any]) -> str:
    """What became of a job, in words."""
    if row["state"] == "skipped":
        return f"skipped, in {row['folder']}"
    said = f"{row['state']}: {row['why']}" if row["why"] else row["state"]
    return f"{said}, in {row['folder']}" if row["folder"] and row["state"] != "failed" else said


def names_of_numbers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numbers that any row has, without their errors."""
    return [name for name in dict.fromkeys(name for row in rows for name in row.get("numbers", {})) if not name.endswith("/error")]


def as_markdown(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """A row for each job: the words in which it differs, its last numbers with their standard errors, and what became of it."""
    keys, names = varied(rows), names_of_numbers(rows)

    def shown(row: Mapping[str, Any], name: str) -> str:
        value, error = (row.get("numbers", {}).get(key) for key in (name, f"{name}/error"))
        return "" if value is None else f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")

    lines = [["job", *keys, "step", "seconds", *names, ""], ["---"] * (4 + len(keys) + len(names))]
    for row in rows:
        told = [row["words"].get(key, "") for key in keys]
        measured = [shown(row, name) for name in names]
        lines.append([str(row["job"]), *told, str(row.get("step", "")), str(row.get("seconds", "")), *measured, outcome(row)])
    cells = (" | ".join(" ".join(text.split()).replace("|", r"\|") for text in line) for line in lines)
    return "\n".join([f"```\n{command}\n```\n", *(f"| {line} |" for line in cells)]) + "\n"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as CSV, with a column for each error."""
    keys, names = varied(rows), list(dict.fromkeys(name for row in rows for name in row.get("numbers", {})))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["job", *keys, "state", "why", "folder", "step", "seconds", *names])
    for row in rows:
        told = [row["words"].get(key, "") for key in keys]
        said = [row.get(key, "") for key in ("state", "why", "folder", "step", "seconds")]
        writer.writerow([row["job"], *told, *said, *(row.get("numbers", {}).get(name, "") for name in names)])
    return out.getvalue()
