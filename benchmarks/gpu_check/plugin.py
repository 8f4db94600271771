"""pytest -p benchmarks.gpu_check.plugin — a line in the file GPU_CHECK_RECORD for each test as it begins and ends, and no test run again.

Lines are JSON: {"collected": N}, {"begun": TEST}, and {"test": TEST, "outcome": passed|failed|skipped, "seconds": S, "said": TEXT}.
After an error of CUDA itself, which every later test of the process would meet, the session ends, to be begun again."""

import json
import os
import re
from pathlib import Path

import pytest

RECORD = "GPU_CHECK_RECORD"
BROKEN = re.compile(r"CUDA error|CUBLAS_STATUS_(?!NOT_SUPPORTED)|device-side assert|unspecified launch failure")
NODES: dict[str, dict] = {}


def add(line: dict) -> None:
    with open(os.environ[RECORD], "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict]:
    """The whole lines of a record."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def results(path: Path) -> dict[str, dict]:
    """What came out, by test."""
    return {line["test"]: line for line in read(path) if "test" in line}


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    done = results(Path(os.environ[RECORD]))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_collection_finish(session: pytest.Session) -> None:
    add({"collected": len(session.items) + len(results(Path(os.environ[RECORD])))})


def pytest_runtest_logstart(nodeid: str) -> None:
    NODES[nodeid] = {"test": nodeid, "outcome": "passed", "seconds": 0.0, "said": ""}
    add({"begun": nodeid})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    line = NODES[report.nodeid]
    line["seconds"] = round(line["seconds"] + report.duration, 2)
    if report.outcome != "passed" and line["outcome"] != "failed":
        crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", None)
        skip = report.longrepr[2] if isinstance(report.longrepr, tuple) else None
        line |= {"outcome": report.outcome, "said": str(crash or skip or report.longrepr)[:2000]}


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    add(NODES[nodeid])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    yield
    if BROKEN.search(NODES.get(item.nodeid, {}).get("said", "")):
        item.session.shouldstop = "the device is in error: a new process goes on"
