"""docs/ is true: the rooms of docs/architecture.md are those of diffusion/, the keys of docs/configuration.md those of conf/."""

import pydoc
import re
import subprocess
from importlib.util import find_spec

import pytest
import yaml
from documents import ROOT, blocks, commands, composed_config, configured, house, program, rows, variants
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from test_floors import FLOORS, INNER, unit

from diffusion.convert import command_line, flags_of
from diffusion.model import assemble
from diffusion.published import results_of
from diffusion.schemas import container, known
from diffusion.shell import quoted
from diffusion.support.build import build, review, ways
from diffusion.support.errors import UserError
from diffusion.support.moved import TARGETS
from diffusion.training.fitting import require_fit
from diffusion.training.machine import precise

ARCHITECTURE, CONFIGURATION = ((ROOT / "docs" / name).read_text() for name in ("architecture.md", "configuration.md"))
CHANGES = (ROOT / "CHANGELOG.md").read_text()
DOCUMENTS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")] + sorted((ROOT / "docs").glob("*.md"))
TYPED = [words for words in commands(CONFIGURATION) if program(words)]


def test_the_rooms_are_those_of_the_floors_test():
    assert house(ARCHITECTURE) == {floor: set(names) for floor, names in FLOORS.items()}


@pytest.mark.parametrize(("code", "again"), [(0, ""), (1, ""), (137, ""), (138, "requeue 7"), (139, ""), (143, "requeue 7")])
def test_a_stopped_job_is_queued_again_and_no_other(code, again):
    """One that had no memory left, or crashed, would be queued again without end."""
    (lines,) = [block for block in blocks(CONFIGURATION) if block.startswith("#SBATCH")]
    script = f"srun() {{ return {code}; }}; scontrol() {{ echo $*; }}; SLURM_JOB_ID=7\n{lines}"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip() == again


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


AUTOENCODERS = [words for words in commands((ROOT / "docs/autoencoders.md").read_text()) if program(words)]


@pytest.mark.parametrize("words", AUTOENCODERS, ids=" ".join)
def test_a_command_of_autoencoders_composes(words):
    name, schema, typed = program(words)
    config = configured(name, schema, typed)
    assert name != "train" or config["training"]["_target_"].endswith(".AutoencoderModule")


@pytest.mark.parametrize("words", [words for words in commands((ROOT / "docs/text.md").read_text()) if program(words)], ids=" ".join)
def test_a_command_of_texts_composes(words):
    """As the shell hands it over: a prompt has blanks, and Hydra would read its commas."""
    name, schema, typed = program(words)
    said = dict(word.split("=", 1) for word in typed)
    assert configured(name, schema, [quoted(word) for word in typed])["guidance"]["cfg"]["negative"] == said.get("negative_prompt")


WEIGHTS = commands((ROOT / "docs/weights.md").read_text())


@pytest.mark.parametrize("words", [words for words in WEIGHTS if program(words)], ids=" ".join)
def test_a_command_of_weights_composes(words):
    name, schema, typed = program(words)
    configured(name, schema, typed)


def test_the_conversions_of_weights_are_understood():
    """FROM and TO of each, and flags in pairs."""
    conversions = [words[3:] for words in WEIGHTS if words[:3] == ["python", "-m", "diffusion.convert"]]
    assert len(conversions) >= 4
    for words in conversions:
        given, rest = command_line().parse_known_args(words)
        assert given.source and given.target and len(flags_of(rest)) == sum(word.startswith("--") for word in rest)


PUBLISHED = [words for words in commands((ROOT / "docs/published.md").read_text()) if program(words)]


@pytest.mark.parametrize("words", PUBLISHED, ids=" ".join)
def test_a_command_of_published_numbers_composes(words):
    name, schema, typed = program(words)
    config = composed_config(name, [*typed, *(["name=test", "logger=none"] if name == "train" else [])])
    known(config, schema)
    said = [word for word in typed if word.startswith(("published=", "experiment="))]
    found = results_of(container(config.published, resolve=True)) if config.published else ()
    assert bool(found) == (bool(said) and "published=none" not in said)


def test_the_file_that_the_page_on_published_numbers_prints_is_one():
    (text,) = blocks((ROOT / "docs/published.md").read_text(), "yaml")
    assert [result.value for result in results_of(yaml.safe_load(text))] == [3.17, 5.24]


LAUNCHER = re.compile(r"^(?:torchrun(?: --\S+)*|srun python) (?=train|sample)", re.M)
CLUSTERS = [words for words in commands(LAUNCHER.sub("python ", (ROOT / "docs/clusters.md").read_text())) if program(words)]


@pytest.mark.parametrize("words", CLUSTERS, ids=" ".join)
def test_a_command_of_clusters_composes(words):
    """Those that torchrun starts too; and what an experiment says goes together."""
    name, schema, typed = program(words)
    config = configured(name, schema, typed)
    if name == "train" and not config["resume"]:
        review(precise(config))
        require_fit(config)


def test_the_commands_of_clusters_are_found():
    """Of each launcher."""
    lines = (ROOT / "docs/clusters.md").read_text()
    assert len(CLUSTERS) >= 14 and len(LAUNCHER.findall(lines)) >= 4
    assert sum("trainer=multinode" in words for words in CLUSTERS) >= 2


def test_the_job_of_clusters_is_queued_again():
    """By the same line as on the page on configurations."""
    (script,) = blocks((ROOT / "docs/clusters.md").read_text(), "bash")
    (lines,) = [block for block in blocks(CONFIGURATION) if block.startswith("#SBATCH")]
    assert script.splitlines()[-1] == lines.splitlines()[-1].partition("  ")[0]
    assert {"resume=auto", "trainer=multinode"} <= set(script.split()) and lines.splitlines()[0] in script


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
        config = configured(name, schema, variant)
        assert build(config["sampler"], "sampler") and build(config["grid"], "grid")


def said() -> list[tuple[str, str]]:
    """The commands of the page with a comment that is itself words of a command."""
    lines = [line.partition(" #") for block in blocks(CONFIGURATION) for line in block.splitlines()]
    return [(typed.strip(), words.strip()) for typed, _, words in lines if re.fullmatch(r"( [\w.]+=\S+)+", words)]


@pytest.mark.parametrize("typed, words", said())
def test_what_a_comment_says_comes_of_the_command(typed, words):
    """Saying it too changes nothing."""
    name, schema, before = program(typed.split())
    assert configured(name, schema, [*before, *words.split()]) == configured(name, schema, before)


def test_comments_are_compared():
    assert len(said()) >= 5


def cells(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the change log."""
    return rows(CHANGES[CHANGES.index(f"### {heading}\n") :].split("\n### ")[0], "| then |")


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("then, now", cells("Words and keys"), ids=lambda cell: cell[:40])
def test_the_words_of_the_change_log(then, now):
    """What is said now composes; what was said then does not, unless it is said that it does."""
    old, new = (codes(cell)[0].removeprefix("python ") for cell in (then, now))
    if "diffusion." in new:
        assert find_spec(new.split()[1]) and not find_spec(old.split()[1])
        return
    assert composes(new)
    assert composes(old) == ("still" in then or "needed" in then)


def composes(command: str) -> bool:
    words = ["python", *(["-m", "diffusion.evaluate"] if command.startswith("evaluate") else command.split()[:1]), *command.split()[1:]]
    name, schema, typed = program(words)
    try:
        config = configured(name, schema, typed)
        if name == "train":  # some are refused where they would be built
            config["codec"]["data_shape"], config["conditions"] = [8, 8, 1], {"_target_": "diffusion.conditions.Classes", "num_classes": 10}
            assemble(config).recipe(**ways(config)["main"])
    except (HydraException, OmegaConfBaseException, ValueError, UserError):
        return False
    return True


def test_the_modules_of_the_change_log():
    """Those of then are gone, those of now are there, one for one; and what old folders name is among them."""
    table = {}
    for then, now in cells("Modules"):
        table |= dict(zip(codes(then), codes(now), strict=True))
    assert [name for name in table if find_spec(name)] == []
    assert [name for name in table.values() if not find_spec(name)] == []
    assert {old.rstrip("."): new.rstrip(".") for old, new in TARGETS.items()}.items() <= table.items()


def test_the_names_of_the_change_log():
    """Each now is there."""
    for _, now in cells("Names"):
        name = codes(now)[0].partition("(")[0]
        if name.startswith("diffusion."):
            assert pydoc.locate(name) is not None, name


def test_a_commit_is_checked_as_the_tests_begin():
    """Pre-commit's hooks are what `make test` runs before the tests, and what continuous integration runs is `make test`."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (needs,) = re.findall(r"^test: (.*?)  ##", (ROOT / "Makefile").read_text(), re.M)
    assert [hook["entry"] for hook in hooks] == [f"make {target}" for target in needs.split() if not target.startswith(".")]
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
