"""What the jobs of a sweep have come to: lines of JSON that all of its processes append to, and the table that is made of them."""

import csv
import io
import json
import math
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from diffusion.config import run_name
from diffusion.dashboard.files import locked
from diffusion.dashboard.read import read_run
from diffusion.support.files import atomic, lock

HERE = "DIFFUSION_SWEEP"  # the environment's name for SWEEP@FILE, by which the processes of a sweep find its rows
HIDDEN = ".sweeps"  # in the folder of a sweep's runs: its lines, and the locks of its jobs
NAMED = ("loss", "loss/accuracy", "heldout")  # numbers of a run beside those of its metrics, which have an @


class Ledger:
    """The rows of one sweep, at RUNS/.sweeps/NAME.jsonl, and its table, at RUNS/NAME.md and .csv, which are new after each row: what was
    done before a sweep was killed can be read.

    `sweep` says which one of this name it is: what works for an earlier one writes nothing. `holder` is a lock that the sweep's own process
    has for as long as it lives, by which those of its jobs see when it has ended, however it did."""

    def __init__(self, runs: Path, name: str, sweep: str = "") -> None:
        self.file, self.table, self.sweep = runs / HIDDEN / f"{name}.jsonl", runs / f"{name}.md", sweep
        self.holder = self.file.with_suffix(".sweep")

    @classmethod
    def current(cls) -> Self | None:
        """That of the sweep which this process works for; None for another rank of torchrun, whose first one speaks for all."""
        sweep, _, place = os.environ.get(HERE, "").partition("@")
        return cls(Path(place).parents[1], Path(place).stem, sweep) if place else None

    def begin(self, command: str, outlived: bool = False, swept: Sequence[str] = ()) -> None:
        """No rows yet, and the processes that this one starts find it; they may live longer than it does where it is `outlived`. Its words
        that are `swept` are shown of each job."""
        self.sweep = secrets.token_hex(8)
        with self.alone(), atomic(self.file) as temporary:
            first = {"command": command, "sweep": self.sweep, "outlived": outlived, "swept": [*swept], "pid": os.getpid()}
            temporary.write_text(json.dumps(first) + "\n")
        os.environ[HERE] = f"{self.sweep}@{self.file.resolve()}"

    def stop(self) -> None:
        """Say to the jobs that they are to save and end. No lock is waited for: a signal's handler may have interrupted who has it."""
        with self.file.open("a") as file:
            file.write("\n" + json.dumps({"stopped": True}) + "\n")

    def over(self) -> bool:
        """Whether the sweep was stopped or has ended, or another one of its name has begun; its jobs have to end then. Never where it is
        outlived, and not where it cannot be seen."""
        try:
            first, *said = self.lines()
        except OSError:
            return False
        if first["outlived"]:
            return False
        return first["sweep"] != self.sweep or any("stopped" in line for line in said) or locked(self.holder) is False

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row, which replaces that of the same job, and write the table; not in those of another sweep of this name."""
        place = {"pid": os.getpid(), "host": socket.gethostname()}
        with self.alone():
            if self.lines()[0]["sweep"] != self.sweep:
                return
            torn = not self.file.read_bytes().endswith(b"\n")  # by a process that was killed as it wrote
            with self.file.open("a") as file:
                file.write("\n" * torn + json.dumps({**row, **place}) + "\n")
            rows, swept = self.rows(), self.lines()[0]["swept"]
            texts = {self.table: as_markdown(rows, self.command(), swept), self.table.with_suffix(".csv"): as_csv(rows, swept)}
            for path, text in texts.items():
                with atomic(path) as temporary:
                    temporary.write_text(text)

    def alone(self) -> Any:
        """The lock of the rows."""
        return lock(self.file.with_suffix(".lock"))

    def lines(self) -> list[dict[str, Any]]:
        """What is known of the sweep, then rows, and perhaps that it was stopped; without parts of lines, which are being written or were
        left by a process that was killed."""
        return [said for line in self.file.read_text().splitlines() if (said := said_by(line))]

    def command(self) -> str:
        """The sweep's command."""
        return str(self.lines()[0]["command"])

    def outlived(self) -> bool:
        """Whether jobs go on when the sweep's own process has ended, as those of a cluster do."""
        return bool(self.lines()[0]["outlived"])

    def at_home(self) -> bool:
        """Whether this is the sweep's own process."""
        return bool(self.lines()[0]["pid"] == os.getpid())

    def rows(self) -> list[dict[str, Any]]:
        """The last row of each job, in the order of their numbers."""
        return [row for _, row in sorted({line["job"]: line for line in self.lines() if "job" in line}.items())]

    def running(self) -> list[dict[str, Any]]:
        """The rows of jobs that have begun and not ended."""
        return [row for row in self.rows() if row["state"] == "running"]


def sweep_name(config: DictConfig) -> str:
    """The name of a sweep: NAME or, where that is swept, what was typed of it, as w7,w8. Raises UserError for none of a file."""
    return run_name(swept_words(config).get("name", config.name))


def swept_words(config: DictConfig) -> dict[str, str]:
    """The words that are swept, by their keys."""
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return {word.get_key_element(): word.get_value_string() for word in typed if word.is_sweep_override()}


def said_by(line: str) -> dict[str, Any] | None:
    """What a line says; None for a part of one."""
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return said


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


def varied(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[str]:
    """The keys of the rows' words that are swept, of however few rows, and those whose words are not the same in all of them."""
    keys = dict.fromkeys(key for row in rows for key in row["words"])
    return [key for key in keys if key in swept or len({row["words"].get(key) for row in rows}) > 1]


def outcome(row: Mapping[str, Any]) -> str:
    """What became of a job, in words."""
    if row["state"] == "skipped":
        return f"skipped, in {row['folder']}"
    said = f"{row['state']}: {row['why']}" if row["why"] else row["state"]
    return f"{said}, in {row['folder']}" if row["folder"] and row["state"] != "failed" else said


def names_of_numbers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numbers that any row has, without their errors."""
    return [name for name in dict.fromkeys(name for row in rows for name in row.get("numbers", {})) if not name.endswith("/error")]


def as_markdown(rows: Sequence[Mapping[str, Any]], command: str, swept: Sequence[str] = ()) -> str:
    """A row for each job: the words in which it differs, its last numbers with their standard errors, and what became of it."""
    keys, names = varied(rows, swept), names_of_numbers(rows)

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


def as_csv(rows: Sequence[Mapping[str, Any]], swept: Sequence[str] = ()) -> str:
    """The same as CSV, with a column for each error."""
    keys, names = varied(rows, swept), list(dict.fromkeys(name for row in rows for name in row.get("numbers", {})))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["job", *keys, "state", "why", "folder", "step", "seconds", *names])
    for row in rows:
        told = [row["words"].get(key, "") for key in keys]
        said = [row.get(key, "") for key in ("state", "why", "folder", "step", "seconds")]
        writer.writerow([row["job"], *told, *said, *(row.get("numbers", {}).get(name, "") for name in names)])
    return out.getvalue()
