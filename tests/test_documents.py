"""docs/ is true: the rooms of docs/architecture.md are those of diffusion/, the keys of docs/configuration.md those of conf/."""

import re

import pytest
import yaml
from documents import ROOT, commands, configured, house, program, rows, variants
from test_floors import FLOORS, INNER, unit

ARCHITECTURE, CONFIGURATION = ((ROOT / "docs" / name).read_text() for name in ("architecture.md", "configuration.md"))
DOCUMENTS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")] + sorted((ROOT / "docs").glob("*.md"))
TYPED = [words for words in commands(CONFIGURATION) if program(words)]


def test_the_rooms_are_those_of_the_floors_test():
    assert house(ARCHITECTURE) == {floor: set(names) for floor, names in FLOORS.items()}


def test_every_file_has_a_room():
    assert set().union(*house(ARCHITECTURE).values()) == {unit(file) for file in INNER}


def test_packages_have_a_slash():
    """And files have none."""
    names = {name for line in re.findall(r"^\d  (.+)", ARCHITECTURE, re.M) for name in line.split() if not name.endswith(".py")}
    assert {name for name in names if (ROOT / "diffusion" / name).is_dir() != name.endswith("/")} == set()


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_what_is_linked_is_there(file):
    links = [link for link in re.findall(r"\]\(([^)#]+)", file.read_text()) if "://" not in link]
    assert [link for link in links if not (file.parent / link).exists()] == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_what_is_named_is_there(file):
    """Files in backquotes, from the root, from the document's folder or from diffusion/; not the old ones of the change log."""
    if file.name == "CHANGELOG.md":
        return
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|toml))`", file.read_text())
    places = (ROOT, file.parent, ROOT / "diffusion", ROOT / "tests")
    own = {"mine.py"}  # the reader's
    assert [name for name in named if name not in own and not any((place / name).exists() for place in places)] == []


def test_the_keys_are_those_of_the_commands():
    """The table of plain keys: a cross where the command's file of conf/ has the key."""
    said = {row[0].strip("`"): [bool(cell) for cell in row[1:4]] for row in rows(CONFIGURATION, "| key |")}
    found = [yaml.safe_load((ROOT / f"conf/{name}.yaml").read_text()) for name in ("train", "sample", "evaluate")]
    keys = dict.fromkeys(key for conf in found for key in conf if key not in ("defaults", "hydra"))
    assert said == {key: [key in conf for conf in found] for key in keys}


def test_the_groups_are_those_of_the_commands():
    """The table of groups: a cross where the command's file of conf/ lists the group."""
    said = {row[0].strip("`"): [bool(cell) for cell in row[1:4]] for row in rows(CONFIGURATION, "| group |")}
    found = [listed(name) for name in ("train", "sample", "evaluate")]
    groups = dict.fromkeys(group for conf in found for group in conf)
    assert said == {group: [group in conf for conf in found] for group in groups}


def listed(name: str) -> list[str]:
    """The groups in a command's list of defaults."""
    entries = yaml.safe_load((ROOT / f"conf/{name}.yaml").read_text())["defaults"]
    return [group for entry in entries if isinstance(entry, dict) for group in entry if not group.startswith("override")]


@pytest.mark.parametrize("words", TYPED, ids=[" ".join(words[1:]) for words in TYPED])
def test_a_command_of_the_page_on_configurations_composes(words):
    name, schema, typed = program(words)
    for variant in variants(typed):
        assert configured(name, schema, variant)["sampler"]
