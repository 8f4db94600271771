"""One cell of a table: a model, a way to sample it and metrics, measured unless the file has their numbers already."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion.data import ImageSet
from diffusion.evaluation import EXACT
from diffusion.evaluation.given import GivenImages
from diffusion.evaluation.kept import KeptFeatures
from diffusion.evaluation.measure import Source, measure
from diffusion.evaluation.rows import FLOOR, read_cells
from diffusion.evaluation.subjects import Drawn, Subject
from diffusion.metrics import Metric, Passport, write_metrics
from diffusion.metrics.intervals import GROUPS
from diffusion.model import Model
from diffusion.passport import finite
from diffusion.pictures import save_png
from diffusion.published import NOTHING, Published
from diffusion.support.build import build_stages
from diffusion.support.commands import made_by_command
from diffusion.support.environment import environment
from diffusion.support.errors import UserError
from diffusion.support.files import writing_in
from diffusion.support.ranks import rank_and_world, sum_over_ranks

WAY = ("sampler", "grid", "guidance")
NAMED = (*WAY, "way", "ckpt", "images", "averaged", "seed", "precision", "dataset", "reference", "schedule", "metric")  # label a line
log = logging.getLogger(__name__)


def evaluate(
    subject: Subject, way: Mapping[str, Any], config: Mapping[str, Any], typed: Mapping[str, str], path: Path
) -> dict[str, list[dict]]:
    """Measure one cell, unless the file at `path` has it, and append a line for each metric; by all ranks together. Returns the cell's
    lines of these metrics, under "sampler", and the data set's own, under "floor", if those were asked for.

    `way` holds the sampler, grid, guidance and metrics, `config` the command's own keys, `typed` what was typed, which labels the cell. A
    cell is what a number depends on beside the metric, as the passport says it: models by the hashes of their weights, not by their paths.

    Raises UserError or ValueError with one sentence for an error that the user can correct."""
    metrics = list(build_stages(way["metric"], "metric").values())
    if not metrics:
        raise UserError("There is nothing to measure: say metric=fd_digits, fid or fd_resnet56.")
    model = subject.model
    how = {"batch_size": config["sample_batch_size"], "precision": config["precision"], "graphs": config["graphs"]}
    recipe = model.recipe(*(way[key] for key in WAY), **how)
    for metric in metrics:
        metric.setup(subject.data, subject.device, recipe.conditions)
    first = recipe.first if isinstance(recipe, GivenImages) else config["seed"]
    passport = {"ema": model.ema, "step": model.step, "weights": model.weights}
    of_exact = {key: config[key] for key in ("schedule", "codec", "conditions")} if config["ckpt"] == EXACT else {}
    sources: dict[str, Source] = {"sampler": recipe}
    if config["floor"]:
        if not isinstance(subject.data, ImageSet):
            raise UserError(f"floor=true draws images from the real ones, and {subject.data.name} is known by statistics: leave it out.")
        sources["floor"] = Drawn(subject.data, recipe.conditions, recipe.batch_size)
    lines: dict[str, list[dict]] = {}
    for kind, source in sources.items():
        cell = finite({"seed": first, **passport, **of_exact, **model_of(model), **source.describe()})
        words = {key: value for key, value in typed.items() if key.split(".")[0] in NAMED}
        facts = {**subject.facts, "ckpt": config["images"] or config["ckpt"], "way": kind, "cell": cell, "words": words}
        facts |= {"command": made_by_command(), "environment": environment()}
        # Real images cannot measure the model, and are not made for a question.
        asked = metrics if kind == "sampler" else [m for m in metrics if m.n and m.asks(recipe.conditions) is recipe.conditions]
        made_by = {**cell, "made of": source.data.sha256 if isinstance(source, Drawn) else subject.made_of, "model": groups_of(model)}
        kept = KeptFeatures(path.parent / "features", made_by, config["keep_features"] if ours({**groups_of(model), **way}) else 0)
        measured = partial(measure, model, source, facts=passport, first_seed=first, kept=kept)
        fill(path, facts, asked, measured, subject.published if kind == "sampler" else NOTHING)
        agreed(True)  # all ranks wait until the first has written
        lines[kind] = [line for line in read_cells(path) if line["cell"] == cell and any(is_of(line, metric) for metric in asked)]
    return lines


def model_of(model: Model | GivenImages) -> dict[str, str]:
    """What a model is beside its weights, which may lie beside another configuration the next time; not where its autoencoder lies."""
    if isinstance(model, GivenImages):
        return {}
    groups = groups_of(model)
    plain = {**groups, "codec": {key: value for key, value in (groups["codec"] or {}).items() if key != "ckpt"}}
    return {"model": hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]}


def groups_of(model: Model | GivenImages) -> dict[str, Any]:
    """The groups of a model's configuration on which its images depend beside its weights."""
    config = model.config if isinstance(model, Model) else {}
    return {key: config.get(key) for key in ("network", "schedule", "parameterization", "codec", "conditions")}


def ours(config: Any) -> bool:
    """Whether a configuration names this package's classes only, of whose code it is known whether it changed."""
    if isinstance(config, Mapping):
        target = config.get("_target_", "diffusion.")
        return str(target).startswith("diffusion.") and all(map(ours, config.values()))
    return not isinstance(config, list | tuple) or all(map(ours, config))


def fill(path: Path, facts: dict[str, Any], metrics: list[Metric], measured: Callable, published: Published) -> None:
    """Append to `path` a line for each number that `measured(metrics)` yields, of the metrics that the cell lacks there; log each number,
    and what is `published` beside it."""
    lines = [line for line in read_cells(path) if line["cell"] == facts["cell"]]
    there = {metric.name: line for metric in metrics for line in lines if is_of(line, metric)}
    for metric in metrics:
        if metric.name in there and facts["way"] != "floor":
            log.info("%-40s %s %.4g, in %s already", called(facts), metric.name, there[metric.name][metric.name], path)
            tell(published, metric.name, there[metric.name]["passport"])
    left, started = [metric for metric in metrics if not agreed(metric.name in there)], time.perf_counter()
    for metric, values, passport in measured(left) if left else ():
        seconds, notes = time.perf_counter() - started, metric.facts()
        for key in (key for key in values if "/" not in key):
            beside = "".join(f" ({word} {notes[f'{key}/{word}']:.4g})" for word in ("real", "chance") if f"{key}/{word}" in notes)
            log.info("%-40s %s %.4g%s, %s calls, %.1f s", called(facts), key, values[key], beside, passport.nfe, seconds)
            tell(published, key, passport.to_dict())
        if rank_and_world()[0] == 0:
            line = {
                **facts,
                "time": time.time(),
                "seconds": seconds,
                **values,
                "metric": metric.name,
                "numbers": [key for key in values if "/" not in key],
                "higher": metric.higher_is_better,
                **notes,
                **pictured(metric, path, facts["cell"]),
                "passport": passport.to_dict(),
            }
            write_metrics(path, line)
    if left:
        log.info("%-40s %s", "", path)


def tell(published: Published, key: str, passport: Mapping[str, Any]) -> None:
    """Log the published numbers beside ours of this name and passport."""
    for comparison in published.beside(key, passport):
        log.info("%-40s published: %s", "", comparison)


def is_of(line: Mapping[str, Any], metric: Metric) -> bool:
    """Whether a line's number is of this metric, told the same and compared with the same data, and its interval, if it has one, of as many
    groups of images."""
    groups = getattr(metric, "groups", 0) or GROUPS
    if len(line.get(f"{metric.name}/without") or [0] * groups) != groups:
        return False
    return all(line["passport"].get(key) == value for key, value in finite(metric.passport()).items() if key not in Passport.NOT_IN_ID)


def pictured(metric: Metric, path: Path, cell: dict) -> dict[str, str]:
    """Save the metric's picture beside the lines in `path`, under a name that belongs to the cell; its name for the line, if it has one."""
    picture = metric.picture()
    if picture is None:
        return {}
    which = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]
    with writing_in([path.parent]):  # whose place, out=FILE, was told to the command
        file = save_png(picture, path.with_name(f"{path.stem}-{metric.name}-{which}.png"))
    log.info("%-40s %s", "", file)
    return {"picture": file.name}


def called(facts: dict) -> str:
    """The name of a line's subject, for the log."""
    words = [f"{key}={value}" for key, value in facts["words"].items() if key not in ("ckpt", "dataset")]
    return FLOOR if facts["way"] == "floor" else " ".join(words) or facts["ckpt"]


def agreed(finding: bool) -> bool:
    """The first rank's finding, on every rank: another may have read the file a moment later."""
    return bool(sum_over_ranks(torch.tensor(int(finding and rank_and_world()[0] == 0))))
