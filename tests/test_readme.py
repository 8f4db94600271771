"""README.md is true: its words are those of conf/, its map is the house, its examples run as they are printed, its commands too."""

import os
import re
from pathlib import Path

import pytest
from commands import command, succeeded
from documents import COMMANDS, ROOT, blocks, commands, configured, fully, house, program, rows, variants

from diffusion.support.build import build

TEXT = (ROOT / "README.md").read_text()
CONF = ROOT / "conf"
WORDS = {row[0].strip("`"): row[2].split(", ") for row in rows(TEXT, "| group |")}
NO_WORDS = {"callbacks", "debug", "hydra", "paths"}  # settings, and what Hydra wants
TYPED = [words for words in commands(TEXT) if program(words)]
FEW = ["metric.n=20", "metric.groups=0"]
SMALL = [
    "steps=4",
    "eval_every=4",
    "checkpoint_every=2",
    "log_every=2",
    "batch_size=8",
    "network.channels=8",
    "grid.steps=2",
    "logger=none",
    *FEW,
]
# The beginnings of the commands that are run, not only composed, in this order, and what is added to them so that they take seconds.
RUN = {
    "python train.py resume=runs/NAME": "steps=6",
    "python sample.py ckpt=runs/NAME n=64": "n=4 grid.steps=3",
    "python sample.py ckpt=runs/NAME averaged=false": "n=2",
    "python -m diffusion.evaluate ckpt=runs/NAME metric=fd_digits": "grid.steps=2 metric.n=20 metric.groups=0",
    "python -m diffusion.evaluate ckpt=runs/NAME metric=[fd_digits,": "metric.n=20 metric.groups=0 metric.nll_vlb.images=2",
    "python -m diffusion.evaluate -m ckpt=runs/NAME": "grid.steps=2,3 guidance.scale=1 metric.n=20 metric.groups=0",
    "python -m diffusion.dashboard runs/": "",
}


def choices(group: str) -> set[str]:
    return {file.stem for file in (CONF / group).glob("*.yaml")}


def test_the_groups_are_those_of_conf():
    assert WORDS.keys() == {path.name for path in CONF.iterdir() if path.is_dir()} - NO_WORDS


@pytest.mark.parametrize("group", WORDS)
def test_the_words_of_a_group_are_its_files(group):
    """All but `custom`, which is said once for all groups."""
    assert WORDS[group] == sorted(choices(group) - {"custom"})


def test_the_groups_that_take_a_class_of_ones_own():
    (sentence,) = re.findall(r"`GROUP=custom` takes a class of your own: ([^.]*)\.", TEXT)
    assert re.findall(r"`(\w+)`", sentence) == sorted(path.parent.name for path in CONF.glob("*/custom.yaml"))


def test_the_map_is_the_house():
    """That of docs/architecture.md, which is compared with the files."""
    assert house(TEXT) == house((ROOT / "docs/architecture.md").read_text())


def test_what_is_linked_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_targets_are_the_makefile_s():
    """Of all the `make TARGET` in the text."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`|  )make ([a-z-]+)", TEXT, re.M)) <= targets


@pytest.mark.parametrize("words", TYPED, ids=[" ".join(words[1:]) for words in TYPED])
def test_a_command_composes(words):
    name, schema, typed = program(words)
    for variant in variants(typed):
        config = configured(name, schema, variant)
        assert build(config["sampler"], "sampler") and build(config["grid"], "grid")
        for stage, node in config["guidance"].items():
            assert build(node | {"_partial_": True}, f"guidance.{stage}")


def test_every_command_of_ours_is_there():
    assert {program(words)[0] for words in TYPED} == {name for name, _ in COMMANDS.values()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with runs/NAME, as the commands name it, and the README's mine.py."""
    folder = tmp_path_factory.mktemp("readme")
    (code,) = [block for block in blocks(TEXT, "python") if "class Laplace" in block]
    (folder / "mine.py").write_text(code)
    did(folder, ["python", "train.py", "name=NAME", *SMALL])
    return folder


def did(folder: Path, words: list[str]) -> str:
    """What a command said, that succeeded in this folder."""
    return succeeded(command(*fully(words), cwd=folder, env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}))


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("beginning", RUN)
def test_a_command_runs(folder, beginning):
    """The printed one, with a few words more."""
    if "dashboard" in beginning:
        pytest.importorskip("plotly")
    printed = commands(TEXT) + [code.split() for code in re.findall(r"`(python -m [^`]+)`", TEXT)]
    (words,) = [words for words in printed if " ".join(words).startswith(beginning)]
    did(folder, [*words, *RUN[beginning].split()])


@pytest.mark.xdist_group("readme")
def test_the_example_of_a_schedule_trains_and_samples(folder):
    train, sample = [words for words in TYPED if any("laplace" in word for word in words)]
    did(folder, [*train, *SMALL])
    did(folder, [*sample, "n=4", "grid.steps=2"])
    assert list((folder / "runs/laplace/samples").glob("*/grid.png"))


@pytest.mark.xdist_group("readme")
def test_the_examples_of_the_library_run(folder, monkeypatch):
    """As they are printed, one after the other, the second on runs/NAME; and the first's images are what was asked for."""
    monkeypatch.chdir(folder)
    exact, trained = [block for block in blocks(TEXT, "python") if "images = " in block]
    space: dict = {}
    exec(exact, space)
    assert space["images"].shape == (64, 32, 32, 3)
    means = space["images"].double().flatten(1).mean(1)
    for kind in range(3):  # the truth is known: each image is of the grey that was asked for
        assert (means[kind::3] - (0.8 * (kind - 1) + 1) * 127.5).abs().max() < 3
    exec(trained, space)
    assert space["images"].shape == (64, 8, 8, 1) and space["images"].double().std() > 10
