"""The tests that need a GPU, or that make there what they make on a CPU."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.check import Check, Failed
from benchmarks.gpu_check.plugin import RECORD, read, results
from benchmarks.gpu_check.report import table

FILES = (  # in this order
    "tests/gpu/test_gpu_arithmetic.py",
    "tests/gpu/test_gpu_samplers.py",
    "tests/gpu/test_gpu_training.py",
    "tests/gpu/test_gpu_memory.py",
    "tests/gpu/test_gpu_ranks.py",
    "tests/unit/test_pretended_sampling.py",
    "tests/unit/test_pretended_training.py",
    "tests/gpu/test_gpu_experiments.py",
)
ENDED = (0, 1, 2, 5)  # pytest's codes: all well, some failed, stopped, none left


@dataclass(frozen=True)
class Pytest:
    """`pytest -m cuda`, until each test has come to an end. A process that dies has its test counted as died, and another goes on."""

    paths: Sequence[str] = FILES
    name: str = "tests"
    title: str = "tests"

    def record(self, check: Check) -> Path:
        return check.out / "tests.jsonl"

    def run(self, check: Check) -> str:
        record = self.record(check)
        check.environment = {**check.environment, RECORD: str(record), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        line = ["-m", "pytest", *self.paths, "-m", check.size.tests, "--device", check.device, f"--timeout={check.size.timeout}"]
        seen = -1

        def each() -> None:
            nonlocal seen
            if record.exists() and (size := record.stat().st_size) != seen:
                seen = size
                check.tell()

        while not (before := len(results(record))) or before < self.collected(record):
            code = check.code("pytest", *line, "-p", "benchmarks.gpu_check.plugin", "-p", "no:cacheprovider", "-q", "--tb=short", each=each)
            self.note_the_dead(record, code)
            if len(results(record)) == before:
                raise Failed(f"pytest ended with exit code {code} and no test done; its log is {check.work / 'logs/tests-pytest.log'}")
        counts = self.counts(record)
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        if counts.keys() & {"failed", "died"}:
            raise Failed(said)
        return said

    def note_the_dead(self, record: Path, code: int) -> None:
        """A process that ended by itself in the middle of a test has died of it."""
        lines = read(record)
        begun = [line["begun"] for line in lines if "begun" in line]
        if code not in ENDED and begun and begun[-1] not in results(record):
            line = {"test": begun[-1], "outcome": "died", "seconds": 0.0, "said": f"its process ended with exit code {code}"}
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def collected(self, record: Path) -> int:
        return max((line["collected"] for line in read(record) if "collected" in line), default=0)

    def counts(self, record: Path) -> Counter[str]:
        return Counter(line["outcome"] for line in results(record).values())

    def lines(self, check: Check) -> list[str]:
        """How many, what failed, what was skipped and why, and the slowest."""
        record = self.record(check)
        found = results(record)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts(record).items())
        lines = [
            f"{len(found)} of {self.collected(record)} are done: {counts or 'none yet'}. On `{check.device}`, `-m '{check.size.tests}'`."
        ]
        bad = [[f"`{test}`", line["outcome"], line["said"][:300]] for test, line in found.items() if line["outcome"] in ("failed", "died")]
        lines += ["", *table(["test", "", "said"], bad)] if bad else []
        why = Counter(line["said"].removeprefix("Skipped: ") for line in found.values() if line["outcome"] == "skipped")
        lines += ["", *table(["skipped", "why"], [[count, reason] for reason, count in why.most_common()])] if why else []
        slowest = sorted(found.values(), key=lambda line: -line["seconds"])[:5]
        return [*lines, "", *table(["the slowest", "seconds"], [[f"`{line['test']}`", line["seconds"]] for line in slowest])]

    def files(self, check: Check) -> list[Path]:
        return [check.work / "logs" / "tests-pytest.log"]
