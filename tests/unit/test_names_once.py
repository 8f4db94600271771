"""One thing, one name: no two modules of the package define a function or a class of the same name, but for those listed here."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "diffusion"

# Words of different groups of the configuration, each said after its group's name, and what `python -m` runs.
MAY_REPEAT = {
    "Cosine": {"schedules/discrete", "training/lr_schedules"},
    "EDM": {"grids", "parameterization", "samplers/ode", "schedules/continuous", "weightings"},
    "Pixels": {"codecs/pixels", "metrics/extractors/pixels"},
    "Quadratic": {"grids", "schedules/discrete"},
    "Unconditional": {"conditions/classes", "guidance/contrast"},
    "main": {
        "attribute",
        "average",
        "compare",
        "convert",
        "dashboard/__main__",
        "diagnose",
        "diff",
        "reproduce",
        "evaluate",
        "pareto",
        "training/run",
    },
}


def defined(package: Path) -> dict[str, set[str]]:
    """The modules that define each name at their top level, by functions and classes."""
    found = defaultdict(set)
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name].add(path.relative_to(package).with_suffix("").as_posix())
    return found


def repeated(package: Path) -> dict[str, set[str]]:
    """The names that more than one module defines."""
    return {name: modules for name, modules in defined(package).items() if len(modules) > 1}


@pytest.mark.parametrize("name", sorted({*repeated(PACKAGE), *MAY_REPEAT}))
def test_a_name_is_defined_once(name):
    """Both ways: a new repeat is listed with a reason or renamed, and a listed one that is gone leaves the list."""
    assert repeated(PACKAGE).get(name, set()) == MAY_REPEAT.get(name, set())


def test_a_repeat_is_found(tmp_path):
    """The test can fail: functions and classes count alike, what is inside of them does not, nor does a module's own second definition."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    def f(self): ...\n\ndef g(): ...\ndef h(): ...\n")
    (tmp_path / "inner" / "b.py").write_text("def A(): ...\ndef f(): ...\nasync def h(): ...\nif True:\n    def g(): ...\n")
    assert repeated(tmp_path) == {"A": {"a", "inner/b"}, "h": {"a", "inner/b"}}
