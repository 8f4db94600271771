"""What the documents print, taken from them so that it is tested: blocks of code, commands, tables."""

import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from diffusion.config import EvaluateSchema, SampleSchema, TrainSchema, known, own, plain, register, resolved

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    ("train.py",): ("train", TrainSchema),
    ("sample.py",): ("sample", SampleSchema),
    ("-m", "diffusion.evaluate"): ("evaluate", EvaluateSchema),
}


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a Markdown text in a language; those without one by default."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if kind == language]


def commands(text: str) -> list[list[str]]:
    """The commands in the blocks of a Markdown text, as words, without their comments."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(\w+=\S+ )*(python|make) ", line)]


def rows(text: str, head: str) -> list[list[str]]:
    """The rows of the one table whose first line begins with `head`, as cells."""
    lines = text.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(head)]
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def house(text: str, floors: range = range(10)) -> dict[int, set[str]]:
    """The floors of the one block that lists them, from the top down: what stands before two blanks, less slashes and file endings."""
    (block,) = [block for block in blocks(text) if re.match(rf"{floors[-1]}  \S", block)]
    return {
        int(floor): {name.rstrip("/") for name in names.split() if not name.endswith(".py")}
        for floor, names in re.findall(r"^(\d)  (\S+(?: \S+)*)", block, re.M)
    }


def program(words: list[str]) -> tuple[str, type, list[str]] | None:
    """(the configuration's name, its schema, what was typed) of a command of ours; None for another."""
    for start, (name, schema) in COMMANDS.items():
        if tuple(words[1 : 1 + len(start)]) == start:
            return name, schema, words[1 + len(start) :]
    return None


def values_of(word: Override) -> list[str]:
    """What a swept word stands for; of an interval its two ends."""
    return list(word.sweep_string_iterator()) if word.is_discrete_sweep() else [str(word.value().start), str(word.value().end)]


def variants(typed: list[str]) -> Iterator[list[str]]:
    """Each combination of a sweep's words; what was typed itself where nothing is swept."""
    parsed = OverridesParser.create().parse_overrides([word for word in typed if word != "-m"])
    choices = [
        [f"{word.get_key_element()}={value}" for value in values_of(word)] if word.is_sweep_override() else [word.input_line]
        for word in parsed
    ]
    return map(list, product(*choices))


def composed_config(name: str, typed: list[str]) -> DictConfig:
    """What Hydra composes of these words."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, typed)


def configured(name: str, schema: type, typed: list[str]) -> dict:
    """The configuration that these words give, plain and resolved, checked as the command checks it; of sample and evaluate, the way to
    sample that they take from a run of the embedded default."""
    named = ["name=test", "logger=none"] if name == "train" else []
    cfg = composed_config(name, [*named, *typed])
    keys = {word.lstrip("+~").partition("=")[0]: word.partition("=")[2] for word in typed}
    known(cfg, schema)
    if name == "train":
        return resolved(plain(cfg, keys))
    return own(configured("train", TrainSchema, []), cfg, keys)


def fully(words: list[str]) -> list[str]:
    """A printed command's words after `python`, for any folder."""
    return [str(ROOT / word) if word in ("train.py", "sample.py") else word for word in words[1:]]
