"""The notebooks: each opens in Jupyter, imports what there is, and, slowly, runs to its end with every assertion in it."""

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from documents import configured, program

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]
HEADER = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # """


def name(path):
    return path.stem


def imported(path):
    """(module, name or None) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_chapters_are_numbered_without_a_gap_and_the_readme_lists_them():
    assert [int(path.name[:2]) for path in CHAPTERS] == list(range(1, len(CHAPTERS) + 1)) and CHAPTERS
    said = (ROOT / "README.md").read_text()
    assert [path.name for path in NOTEBOOKS if f"notebooks/{path.name}" not in said] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_opens_in_jupyter_and_imports_what_there_is(path):
    assert path.read_text().startswith(HEADER)
    for module, what in imported(path):
        if module.split(".")[0] == "diffusers":
            pytest.importorskip("diffusers")
        assert what is None or hasattr(import_module(module), what), f"{module} has no {what}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_uses_names_that_are_public(path):
    """No underscore of the library's, and no private attribute of its objects."""
    tree = ast.parse(path.read_text())
    private = [what for module, what in imported(path) if module.startswith("diffusion") and (what or "").startswith("_")]
    private += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr)]
    assert private == []


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_a_chapter_claims_draws_and_ends_with_what_to_try(path):
    """What the text says is asserted, at least twice; every figure has a title; the last cell is text."""
    text = path.read_text()
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))) >= 2
    assert text.count("title") >= text.count("plt.subplots(") >= 2
    last = text.rpartition("# %%")[2]
    assert last.startswith(" [markdown]\n") and "\n# ## What to try\n" in last


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_its_commands_compose(path):
    """Those in backquotes: the words of each are words of conf/."""
    printed = [shlex.split(command) for command in re.findall(r"`(python [^`]+)`", path.read_text())]
    assert printed
    for words in printed:
        if found := program(words):
            configured(*found)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_runs(path, tmp_path):
    """In a process and a folder of its own, where it leaves nothing behind."""
    if "import diffusers" in path.read_text():
        pytest.importorskip("diffusers")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list(tmp_path.iterdir()) == []
