"""python -m diffusion.attribute RUN [KEY=VALUE ...] — where a run's distance comes from, and so what to work on.

Measured over the same seeds, each with one thing more of the run than the one before: images of the data set itself (the floor), the exact
denoiser by the run's sampler (the sampler's error), the run's last weights without guidance (the model's), their average, and the run's
guidance; and how much of the run's number is there because its images are finitely many. KEY=VALUE are words of diffusion.evaluate.

  python -m diffusion.attribute runs/NAME metric.n=5000
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from diffusion.compare import enlarged, subject_word
from diffusion.composing import alternatives, composed_of, composing, own_name
from diffusion.config import told
from diffusion.evaluate import asked_for, settings, where
from diffusion.evaluation import DISTANCES, EXACT
from diffusion.shell import begin
from diffusion.support.commands import running
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.support.progress import loading
from diffusion.support.ranks import rank_and_world

SETTLED = ("ckpt", "images", "reference", "dataset", "averaged", "floor", "out")  # what the stages say themselves
OF_DATA = ("schedule", "codec", "conditions", "dataset")  # of the run, that an exact denoiser of its data has too


class Stages:
    """The lines of each stage of a run, in its attribute.jsonl. Raises UserError for what is no run, and for no metric."""

    def __init__(self, words: Sequence[str]) -> None:
        cfg, typed = composed_of(words)
        self.words, self.file = words, where(settings(cfg))
        subject, self.way = asked_for(cfg, settings(cfg), typed)
        if not self.way["metric"]:
            raise UserError("There is nothing to attribute: say metric=fd_digits, fid or fd_resnet56.")
        distances = {name: stage for name, stage in self.way["metric"].items() if stage["_target_"] in DISTANCES}
        if not distances:
            raise UserError("No metric here is a distance, which has parts: say metric=fd_digits, fid or fd_resnet56.")
        self.metric, self.run = enlarged(distances, 1), subject.model.config

    def of_data(self, kind: str) -> list[dict]:
        """Those of the exact denoiser of the run's data by the run's sampler, or of the data set's own images, for `kind` floor."""
        from diffusion.evaluation import attribution, cells, subjects
        from diffusion.support.devices import join_ranks

        cfg, typed = composed_of(self.words)
        known = {key: self.run[key] for key in OF_DATA}
        config = settings(cfg) | known | {"ckpt": EXACT, "floor": True}
        subject = subjects.exact(known, join_ranks(config["device"]))
        way = self.way | {"guidance": attribution.only_limits(self.way["guidance"]), "metric": self.metric}
        for key in ("precision", "sample_batch_size"):
            config[key] = self.run[key] if config[key] is None else config[key]
        return cells.evaluate(subject, way, config, typed, self.file)[kind]

    def of_run(self, averaged: bool, guided: bool, metric: Mapping[str, Any] | None = None) -> list[dict]:
        """Those of the run, by its averaged weights or the last ones, with its guidance or without."""
        from diffusion.evaluation import attribution, cells

        cfg, typed = composed_of([*self.words, f"averaged={str(averaged).lower()}"])
        config = settings(cfg)
        subject, way = asked_for(cfg, config, typed)
        guidance = way["guidance"] if guided else attribution.only_limits(way["guidance"])
        return cells.evaluate(subject, way | {"guidance": guidance, "metric": metric or self.metric}, config, typed, self.file)["sampler"]


def attributed(words: Sequence[str]) -> str:
    """Measure the stages of the run that these words name, and say what each brings, as Markdown; on all ranks."""
    from diffusion.evaluation import attribution as at

    of = Stages(words)
    guides = of.way["guidance"] != at.only_limits(of.way["guidance"])
    whole = partial(of.of_run, True, True, at.with_infinity(of.metric))
    stages = [
        at.Stage("images of the data set itself, as many", "the floor", "", partial(of.of_data, "floor")),
        at.Stage(
            "the exact denoiser, by the run's sampler",
            "the sampler's error",
            "another sampler, or more steps",
            partial(of.of_data, "sampler"),
        ),
        at.Stage(
            "the run's last weights, without guidance",
            "the model's error",
            "a longer training, or another network or objective",
            partial(of.of_run, False, False),
        ),
        at.Stage("their average", "averaging", "a shorter average, or none", partial(of.of_run, True, False) if guides else whole),
    ]
    if guides:
        stages.append(at.Stage("the run, with its guidance", "guidance", "another guidance.scale", whole))
    lines = [stage.measure() for stage in stages]
    if rank_and_world()[0]:
        return ""
    found = at.pieces(stages, lines)
    return "\n".join(at.said(own, at.bias(lines[-1], key)) for key, own in found.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.attribute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="words of diffusion.evaluate")
    given, command = parser.parse_args(), " ".join(sys.argv[1:])
    with composing():
        if more := [word for word in given.words if "=" not in word]:
            raise UserError(f"{more[0]} is not KEY=VALUE, and one run is attributed at a time.")
        if several := [words[0] for words in alternatives(given.words) if len(words) > 1]:
            raise UserError(
                f"{several[0].partition('=')[0]} has several values, and one way is attributed: diffusion.compare takes several."
            )
        keys = {word.partition("=")[0].lstrip("+~") for word in given.words}
        if settled := [key for key in keys if key.partition(".")[0] in SETTLED]:
            raise UserError(f"{min(settled)}= is not said here: the stages say it, from the data set to the run.")
        if not os.path.exists(given.run) or not (subject := subject_word(given.run)).startswith("ckpt="):
            raise UserError(f"{given.run} is not a run: give its folder, such as runs/NAME, or a checkpoint in it.")
        words = [subject, *own_name(given.words, "attribute"), *given.words]
        cfg, typed = composed_of(words)
        with running("attribute", sys.argv[1:]), begin(trust=cfg.trust, places=told(cfg, typed)):
            with loading("torch and the run"):
                from diffusion.evaluation import cells  # noqa: F401 (slow)

            text = attributed(words)
            if text:
                text = f"```\npython -m diffusion.attribute {command}\n```\n\n{text}"
                with atomic(where(settings(cfg)).with_suffix(".md")) as temporary:
                    temporary.write_text(text)
                print(f"{text}\nwritten: {where(settings(cfg)).with_suffix('.md')}")


if __name__ == "__main__":
    main()
