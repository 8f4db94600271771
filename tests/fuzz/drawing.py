"""Whole command lines, drawn by a seed from what the project itself declares: conf/'s groups and values, the schemas' plain keys, and the
arguments of the classes that are named. A value is drawn below, at and above each bound of its range, and among words of other kinds."""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from inspect import signature
from math import inf, nextafter
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from composing import ROOT, SCHEMAS

from diffusion.config import STAGED
from diffusion.evaluate import CHANGED, OF_EXACT
from diffusion.support.build import locate
from diffusion.support.ranges import annotations

CONF = ROOT / "conf"
OTHERS_ONLY = {
    "edit": ("sample",),
    "sweep": ("evaluate",),
    "launcher": ("train",),
    "sweeper": ("train",),
}  # groups that one command alone has
LEFT_OUT = {("logger", "wandb"), ("logger", "default"), ("trainer", "ddp")}  # they start processes of their own, which go on
LEFT_OUT |= {("sweep", path.stem) for path in CONF.glob("sweep/*.yaml")}  # many commands in one
SETTLED = {"paths", "hydra", "trust", "ckpt", "out", "name", "resume", "device"}  # where a command reads and writes, which it is told


@dataclass(frozen=True)
class Command:
    """A program, the configuration that it composes, and words with which it takes a second: {here} is a folder of its own, {here}/run a
    run that is there, and {cache} what is made once for all. What is drawn of a key goes before its word here."""

    program: str
    config: str
    base: str
    changed: tuple[str, ...] = ()  # the groups that it mostly takes; () for all

    def groups(self, rng: random.Random) -> list[str]:
        """Those of a drawn command."""
        return sorted(self.changed or choices(self.config)) if rng.random() < 0.9 else sorted(choices(self.config))


SMALL = "dataset=synthetic dataset.image_size=8 dataset.channels=1 dataset.num_classes=4 dataset.n=32 paths.cache={cache} paths.data={here}"
TRAINED = """name=drawn paths.runs={here}/runs logger=none network.channels=8 batch_size=4 steps=2 log_every=1 eval_every=2
    checkpoint_every=2 grid.steps=2 trainer.accelerator=cpu callbacks.samples.columns=2 callbacks.samples.rows=2"""
MEASURED = "out={here}/out.jsonl device=cpu metric=sliced_wasserstein metric.n=20 grid.steps=2"
OF_A_RUN = tuple(set(CHANGED) & {path.name for path in CONF.iterdir()} - {"sweep"})
COMMANDS = {
    "train": Command("train.py", "train", f"{SMALL} {TRAINED}"),
    "resume": Command("train.py", "train", "resume={here}/run paths.cache={cache} steps=4", ("debug",)),
    "sample": Command("sample.py", "sample", "ckpt={here}/run out={here}/out device=cpu n=2 grid.steps=2"),
    "evaluate": Command("-m diffusion.evaluate", "evaluate", "ckpt={here}/run paths.cache={cache} " + MEASURED, OF_A_RUN),
    "exact": Command("-m diffusion.evaluate", "evaluate", f"ckpt=exact {SMALL} {MEASURED} sampler=ddim", (*OF_A_RUN, *OF_EXACT)),
}
PICTURES = {"img2img": ["edit.image={cache}/picture.png"], "reconstruct": ["edit.image={cache}/picture.png"]}
PICTURES["inpaint"] = [*PICTURES["img2img"], "edit.mask={cache}/picture.png"]
OFTEN = ["train"] * 5 + ["resume", "exact"] + ["sample"] * 2 + ["evaluate"] * 2

NUMBERS = ["-1", "0", "1", "2", "3", "7", "-0.5", "0.5", "1e-30", "1.5", "1e11", "100000000000", "1e300", "nan", "inf", "-inf"]
WORDS = ["foo", "''", "null", "true", "x" * 300, "../x", "[]", "[0.9]", "[1,2,3]", "[nan]", "{}", "{a: 1}", "7_7", "0x10", "1e", "é"]
BESIDE = ["+nothing=1", "~schedule", "schedule=nowhere", "nothing.at.all=1", "steps", "=3", "++seed=2", "sampler=[ddim]", "guidance="]


@cache
def choices(config: str) -> dict[str, list[str]]:
    """The choices of each group that a command has; those of a class of one's own are among them."""
    known = {field.name for field in fields(SCHEMAS[config])} | ({"experiment", "debug"} if config == "train" else set())
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        group = path.parent.name
        if group in known - SETTLED and config in OTHERS_ONLY.get(group, SCHEMAS) and (group, path.stem) not in LEFT_OUT:
            found.setdefault(group, []).append(path.stem)
    return found


class Leaf(NamedTuple):
    """A key as it is typed, with a + if it is not in the files; what it was; and values about the bounds of its range."""

    key: str
    before: str
    edges: tuple[str, ...]


@cache
def content(group: str, choice: str) -> tuple[Leaf, ...]:
    """The keys of a choice's file, and the other arguments of the classes that it names."""
    text = (CONF / group / f"{choice}.yaml").read_text()
    return tuple(leaves(yaml.safe_load(text) or {}, "" if "# @package _global_" in text else group))


def leaves(node: Mapping[str, Any], key: str) -> Iterator[Leaf]:
    """Those of a mapping, at any depth."""
    target = str(node.get("_target_", ""))
    made = locate(target) if target.startswith(("diffusion.", "torch.", "pytorch_lightning.")) else None
    arguments = signature(made).parameters if made else {}
    kinds = annotations(made, arguments) if made else {}
    for name, value in node.items():
        if name in ("defaults", "hydra"):
            continue
        if isinstance(value, dict):
            yield from leaves(value, f"{key}.{name}".lstrip("."))
        yield Leaf(f"{key}.{name}".lstrip("."), str(value), edges(kinds.get(name)))
    for name, argument in arguments.items():
        if target.startswith("diffusion.") and name not in node and argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            yield Leaf(f"+{key}.{name}", "", edges(kinds[name]))


@cache
def plain_keys(config: str) -> tuple[Leaf, ...]:
    """The keys of a schema that are no groups."""
    names = [field for field in fields(SCHEMAS[config]) if field.name not in SETTLED and not (CONF / field.name).is_dir()]
    return tuple(Leaf(field.name, "", edges(field.type)) for field in names)


def edges(annotation: Any) -> tuple[str, ...]:
    """Numbers at the bounds of the ranges that an annotation declares, for itself or for the elements of a list, and on either side."""
    found: list[str] = []
    for bounds in getattr(annotation, "__metadata__", ()):
        whole = get_args(annotation)[0] is int
        for bound in {bounds.least, bounds.most, bounds.above, bounds.below} - {-inf, inf}:
            found += map(
                str, [int(bound) - 1, int(bound), int(bound) + 1] if whole else [nextafter(bound, -inf), bound, nextafter(bound, inf)]
            )
        found += ["nan", "inf", "-inf"]
    return tuple(found) + tuple(edge for inner in get_args(annotation) for edge in edges(inner))


def value(rng: random.Random, leaf: Leaf) -> str:
    """Mostly of the kind that it was: a neighbour, or an edge; and sometimes of another kind."""
    if leaf.before in ("True", "False") and rng.random() < 0.7:
        return rng.choice(["true", "false"])
    near = [f"{float(leaf.before) * factor:g}" for factor in (2, 0.5, 1)] if re.fullmatch(r"-?[\d.]+(e-?\d+)?", leaf.before) else []
    if near + list(leaf.edges) and rng.random() < 0.8:
        return rng.choice(rng.choice([pool for pool in (near, leaf.edges, NUMBERS) if pool]))
    return rng.choice(rng.choice([NUMBERS, WORDS]))


def drawn(rng: random.Random, command: Command, **places: Path) -> list[str]:
    """The words of a command: first what makes it small, then some groups and some values of their files and of the plain keys."""
    taken = command.groups(rng)
    chosen = {
        group: rng.choice(choices(command.config)[group]) for group in rng.sample(taken, min(len(taken), rng.choice([0, 1, 1, 2, 3])))
    }
    words = [f"{g}=[{choice}]" if g in STAGED and rng.random() < 0.5 else f"{g}={choice}" for g, choice in chosen.items()]
    near = [leaf for group, choice in chosen.items() for leaf in content(group, choice)]
    usual = [leaf for group, choice in usually(command).items() if group not in chosen for leaf in content(group, choice)]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        pool = rng.choice([pool for pool in (near, near, usual, plain_keys(command.config)) if pool])
        leaf = rng.choice(pool)
        if leaf.key.lstrip("+").partition(".")[0] not in SETTLED and (not leaf.key.endswith("_target_") or rng.random() < 0.2):
            words.append(f"{leaf.key}={value(rng, leaf)}")
    if rng.random() < 0.05:
        words.append(rng.choice(BESIDE))
    said = {word.lstrip("+~").partition("=")[0] for word in words}
    base = [word.format(**places) for word in command.base.split()]
    kept = [word for word in base if word.partition("=")[0] not in said and not word.startswith(tuple(f"{group}." for group in chosen))]
    return kept + [word.format(**places) for word in PICTURES.get(chosen.get("edit", ""), [])] + words


@cache
def usually(command: Command) -> dict[str, str]:
    """The choice of each group on which nothing is drawn."""
    listed = yaml.safe_load((CONF / f"{command.config}.yaml").read_text())["defaults"]
    found = {group: choice for entry in listed if isinstance(entry, dict) for group, choice in entry.items()}
    found |= dict(word.partition("=")[::2] for word in command.base.split())
    return {group: choice for group, choice in found.items() if isinstance(choice, str) and (CONF / group / f"{choice}.yaml").is_file()}
