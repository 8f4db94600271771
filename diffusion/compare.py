"""python -m diffusion.compare A B [C ...] [KEY=VALUE ...] — is A better than B, by how much, and how sure is that?

A, B, ... are runs, checkpoints, folders or files of images, or the word exact; KEY=VALUE are words of diffusion.evaluate, of which
KEY=1,2 makes a contestant of each value. All have the same seeds, and each is compared with the first, by the metrics that are named or
those of the first run. Images are drawn until all are told apart, or the budget is spent. Runs that differ in their training's seed
alone, two or more of each configuration, are compared as configurations.

  python -m diffusion.compare runs/a runs/b metric=fd_digits
  python -m diffusion.compare runs/a sampler=ddim,heun grid.steps=10,20 --budget 20000
  python -m diffusion.compare FOLDER FILE.npz reference=cifar10 metric=[fid,kid]
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffusion.composing import alternatives, composed_of, composing, own_name
from diffusion.config import told, training_hash
from diffusion.evaluate import asked_for, settings, where, with_reference
from diffusion.evaluation import EXACT
from diffusion.shell import begin
from diffusion.support.commands import running
from diffusion.support.errors import UserError
from diffusion.support.progress import loading

WAYS = ("sampler", "grid", "guidance", "way", "averaged", "precision", "seed")  # words of how a run is sampled


@dataclass(frozen=True)
class Contestant:
    """What is compared: a name, and the words of `diffusion.evaluate` that measure it."""

    label: str
    words: tuple[str, ...]

    @property
    def given(self) -> bool:
        """Whether its images are there already, and no more can be drawn."""
        return self.words[0].startswith("images=")

    @property
    def weights_of(self) -> str:
        """The words on which its weights depend."""
        return " ".join(word for word in self.words if word.partition("=")[0] in ("ckpt", "images", "averaged", "precision"))

    def composed(self) -> tuple[DictConfig, dict[str, str]]:
        """(the configuration, the words by key). Raises UserError for a key that is none."""
        return composed_of(self.words)

    def own_metric(self) -> dict[str, Any]:
        """The metrics that are named, or the run's. Raises UserError for none."""
        cfg, typed = self.composed()
        typed = with_reference(cfg, typed)
        metric: dict[str, Any] = asked_for(cfg, settings(cfg), typed)[1]["metric"]
        if not metric:
            raise UserError("There is nothing to compare by: say metric=fd_digits, fid or fd_resnet56.")
        return metric

    def lines(self, metric: Mapping[str, Any], times: int) -> list[dict]:
        """A line for each of these metrics, of so many times the images that it asks for."""
        from diffusion.evaluation import cells

        cfg, typed = self.composed()
        typed = with_reference(cfg, typed)
        config = settings(cfg)
        cfg.metric = dict(metric)  # the first one's, which is every one's
        subject, way = asked_for(cfg, config, {key: word for key, word in typed.items() if key.partition(".")[0] != "metric"})
        metric = enlarged(metric, times)
        if self.given and (n := max(stage.get("n") or 0 for stage in metric.values())) > (there := len(subject.model.data)):
            raise UserError(f"{self.label} holds {there} images, of {n} that are compared: say metric.n={there}.")
        sizes = [f"metric.{name}.{key}={stage[key]}" for name, stage in metric.items() for key in ("n", "groups") if stage.get(key)]
        with running("evaluate", (*self.words, *sizes)):  # which measures this contestant again
            return cells.evaluate(subject, way | {"metric": metric}, config, typed, where(config))["sampler"]


def enlarged(metric: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Metrics of so many times the images, each with groups of them."""
    from diffusion.metrics.intervals import GROUPS

    more = {name: dict(stage) for name, stage in metric.items()}
    for stage in more.values():
        stage |= {"n": stage["n"] * times} if stage.get("n") else {}
        stage |= {"groups": GROUPS} if stage.get("groups") == 0 else {}
    return more


def contestants(said: Sequence[str], program: str = "compare") -> list[Contestant]:
    """One for each path and each combination of the values of KEY=1,2. Raises UserError for fewer than two, and for what is neither a path
    nor KEY=VALUE."""
    paths = [word for word in said if os.path.exists(word) or word == EXACT]
    typed = [word for word in said if word not in paths]
    if strange := [word for word in typed if "=" not in word]:
        raise UserError(f"There is no file or folder {strange[0]}, and it is not KEY=VALUE.")
    keys = [word.partition("=")[0].lstrip("+~") for word in typed]
    if again := {"ckpt", "images", "out"} & {*keys}:
        raise UserError(f"{min(again)}= is not said here: name the runs and the folders, as A B, and name=NAME for the file.")
    choices = alternatives(typed)
    swept = {key for key, words in zip(keys, choices, strict=True) if len(words) > 1}
    if strange := [key for key in swept if key.partition(".")[0] not in WAYS]:
        raise UserError(f"{strange[0]} is not of how a run is sampled, and one value of it is said: {', '.join(WAYS)} may have several.")
    if double := swept & {key for key in keys if keys.count(key) > 1}:
        raise UserError(f"{min(double)} is said twice: name its values once, as {min(double)}=1,2.")
    usual = own_name(typed, program)
    found = []
    for path, chosen in product(paths, product(*choices)):
        apart = [word for word in chosen if word.partition("=")[0].lstrip("+~") in swept]
        label = " ".join([*([path] if len(paths) > 1 or not apart else []), *apart])
        found.append(Contestant(label, (subject_word(path), *usual, *chosen)))
    if len(found) < 2:
        raise UserError("Say two things to compare at least: runs/A runs/B, or runs/A sampler=ddim,heun.")
    if twice := {one.label for one in found if [other.label for other in found].count(one.label) > 1}:
        raise UserError(f"{min(twice)} is said twice: there is nothing to tell apart.")
    return found


def require_apart(found: Sequence[Contestant]) -> None:
    """Raises UserError for two that are the same by other names, as a run and its last checkpoint."""
    places: dict[tuple[str, ...], str] = {}
    for one in found:
        if (other := places.setdefault((real_place(one.words[0]), *one.words[1:]), one.label)) != one.label:
            raise UserError(f"{one.label} is the same as {other}: there is nothing to tell apart.")


def real_place(word: str) -> str:
    """The file or folder that ckpt=PATH or images=PATH comes to, a run's checkpoint; the word itself where there is none."""
    from diffusion.checkpoint import find

    key, _, path = word.partition("=")
    if key == "ckpt" and path != EXACT and not (Path(path) / "model_index.json").exists():
        with suppress(UserError):
            path = str(find(path)[1])
    return f"{key}={os.path.realpath(path)}"


def subject_word(path: str) -> str:
    """ckpt=PATH for a run, a checkpoint or a model in another format, images=PATH for anything else that is there."""
    place = Path(path)
    run = path == EXACT or place.suffix == ".ckpt" or any((place / name).exists() for name in ("config.yaml", "model_index.json"))
    return f"{'ckpt' if run else 'images'}={path}"


def by_configuration(found: Sequence[Contestant]) -> list[list[Contestant]]:
    """The contestants, those together that are runs of one configuration with different seeds, if there are two or more of each of several;
    otherwise each alone."""
    from diffusion.checkpoint import find, read_config

    groups: dict[Any, list[Contestant]] = {}
    seeds: dict[Any, set] = {}
    for one in found:
        subject, *rest = one.words
        path = subject.partition("=")[2]
        if not subject.startswith("ckpt=") or path == EXACT or (Path(path) / "model_index.json").exists():
            return [[one] for one in found]
        config = read_config(find(path)[0])
        group = training_hash(config | {"seed": 0}), *rest
        groups.setdefault(group, []).append(one)
        seeds.setdefault(group, set()).add(config.get("seed"))
    together = len(groups) > 1 and min(map(len, groups.values())) > 1 and all(len(groups[group]) == len(seeds[group]) for group in groups)
    return list(groups.values()) if together else [[one] for one in found]


def doubt(groups: Sequence[Sequence[Contestant]]) -> str:
    """What a verdict about several runs, each of one seed, does not say; empty where there are seeds, or one run."""
    runs = {of_group[0].words[0] for of_group in groups if of_group[0].words[0].startswith("ckpt=")}
    if len(groups[0]) > 1 or len(runs) < 2:
        return ""
    return (
        "It is said of these runs, each of one training seed, and not of their settings: those are compared by runs of two seeds or more."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="A|KEY=VALUE", help="a run, a checkpoint, images; or a word of diffusion.evaluate")
    parser.add_argument("--budget", type=int, metavar="N", help="images to draw of each at most (8 times the metric's n)")
    parser.add_argument("--confidence", type=float, default=0.95, help="that no verdict of the call is false (0.95)")
    given = parser.parse_intermixed_args()
    command = " ".join(sys.argv[1:])
    with composing():
        if not 0.5 <= given.confidence < 1:
            raise UserError(f"--confidence {given.confidence} is a probability from 0.5 to below 1, as 0.95.")
        found = contestants(given.words)
        configurations = [one.composed() for one in found]
        places = [place for cfg, typed in configurations for place in told(cfg, typed)]
        with running("compare", sys.argv[1:]), begin(trust=configurations[0][0].trust, places=places):
            with loading("torch and the runs"):
                from diffusion.evaluation.contest import Contest

            require_apart(found)
            groups, file = by_configuration(found), where(settings(configurations[0][0]))
            contest = Contest(groups, given.budget, 1 - given.confidence, doubt(groups))
            try:
                contest.run()
            finally:  # what was told before a mistake, or Ctrl-C, is as true
                contest.save(file, f"python -m diffusion.compare {command}")


if __name__ == "__main__":
    main()
