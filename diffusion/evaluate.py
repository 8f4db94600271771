"""python -m diffusion.evaluate ckpt=runs/NAME metric=fd_digits — the metrics of a run's images; with -m or sweep=samplers, a table."""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.distributed as dist
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from diffusion.checkpoint import find
from diffusion.config import EvaluateSchema, known, own, register, words
from diffusion.evaluation import tables as table
from diffusion.evaluation.measure import measure
from diffusion.evaluation.subjects import EXACT, Drawn, exact, trained
from diffusion.metrics import Metric, write_metrics
from diffusion.pictures import save_png
from diffusion.shell import begin, shell
from diffusion.support.build import build, build_stages
from diffusion.support.errors import UserError
from diffusion.support.ranks import rank_and_world, sum_over_ranks

WAY = ("sampler", "grid", "guidance")
KEYS = ("ckpt", "averaged", "seed", "precision", "sample_batch_size", "device", "floor", "name", "out", "paths", "trust")
EXACT_KEYS = ("dataset", "schedule", "codec", "conditions")
log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One cell; under -m or with a sweep, each of the table's."""
    with begin(trust=cfg.trust):
        known(cfg, EvaluateSchema)
        evaluate(cfg, words())


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The keys that are read here, resolved; what a data set's file brings for training may refer to what is not here.

    Raises UserError if there is nothing to measure."""
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise UserError(f"Say what to measure: ckpt=runs/NAME, or ckpt={EXACT} dataset=digits for a data set's exact denoiser.")
    values = {key: cfg[key] for key in (*KEYS, *EXACT_KEYS)}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in values.items()}


def evaluate(cfg: DictConfig, typed: Mapping[str, str]) -> None:
    """Measure one cell, unless the file has it, and append a line for each metric; by all ranks together.

    Raises UserError or ValueError with one sentence for what the user can mend."""
    config = plain(cfg)
    device = join_ranks(config["device"])
    subject = (exact if config["ckpt"] == EXACT else trained)(config, device)
    model, run = subject.model, subject.model.config
    way = own(run, cfg, typed)
    metrics = list(build_stages(way["metric"], "metric").values())
    if not metrics:
        raise UserError("There is nothing to measure: say metric=fd_digits, fid or fd_resnet56.")
    precision = config["precision"] or str(run["precision"])
    recipe = model.recipe(
        *(way[key] for key in WAY), batch_size=config["sample_batch_size"] or run["sample_batch_size"], precision=precision
    )
    for metric in metrics:
        metric.setup(subject.data, device, recipe.conditions)
    of_exact = EXACT_KEYS if config["ckpt"] == EXACT else ("dataset",)
    cell = {key: config[key] for key in ("ckpt", "averaged", "seed", *of_exact)} | {"weights": model.weights, "metric": way["metric"]}
    cell |= subject.facts
    sources = {"sampler": (recipe, cell | {key: way[key] for key in WAY} | {"precision": precision})}
    if config["floor"]:
        sources["floor"] = (Drawn(subject.data, recipe.conditions, recipe.batch_size), cell)
    passport = {"ema": model.ema, "step": model.step, "weights": model.weights}
    for kind, (source, what) in sources.items():
        facts = {**subject.facts, "way": kind, "cell": what, "words": {k: v for k, v in typed.items() if k.split(".")[0] in what}}
        asked = metrics if kind == "sampler" else [metric for metric in metrics if metric.n]  # real images say nothing of the model
        fill(where(config), facts, asked, partial(measure, source, facts=passport, first_seed=config["seed"]))


def fill(path: Path, facts: dict, metrics: list, measured: Callable) -> None:
    """Append to `path` a line for each number that `measured(metrics=...)` yields, of the metrics that the cell lacks there."""
    there = {line["metric"]: line for line in table.read(path) if line["cell"] == facts["cell"]}
    for metric in metrics:
        if metric.name in there and facts["way"] != "floor":
            log.info("%-40s %s %.4g, in %s already", called(facts), metric.name, there[metric.name][metric.name], path)
    left, started = [metric for metric in metrics if not agreed(metric.name in there)], time.perf_counter()
    for metric, values, passport in measured(metrics=left) if left else ():
        seconds = time.perf_counter() - started
        log.info("%-40s %s %.4g, %s calls, %.1f s", called(facts), metric.name, values[metric.name], passport.nfe, seconds)
        if rank_and_world()[0] == 0:
            line = {
                **facts,
                "time": time.time(),
                "seconds": seconds,
                **values,
                "metric": metric.name,
                **metric.facts(),
                **pictured(metric, path, facts["cell"]),
                "passport": passport.to_dict(),
            }
            write_metrics(path, line)


def pictured(metric: Metric, path: Path, cell: dict) -> dict[str, str]:
    """Save the metric's picture beside the lines in `path`, under a name that belongs to the cell; its name for the line, if it has one."""
    picture = metric.picture()
    if picture is None:
        return {}
    which = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]
    file = save_png(picture, path.with_name(f"{path.stem}-{metric.name}-{which}.png"))
    log.info("%-40s %s", "", file)
    return {"picture": file.name}


def called(facts: dict) -> str:
    """What a line is of, for the log."""
    words = [f"{key}={value}" for key, value in facts["words"].items() if key not in ("ckpt", "dataset")]
    return table.FLOOR if facts["way"] == "floor" else " ".join(words) or facts["cell"]["ckpt"]


def agreed(finding: bool) -> bool:
    """The first rank's finding, on every rank: another may have read the file a moment later."""
    return bool(sum_over_ranks(torch.tensor(int(finding and rank_and_world()[0] == 0))))


def where(config: dict) -> Path:
    """The file of the lines."""
    if config["out"]:
        return Path(config["out"])
    if config["ckpt"] == EXACT:
        folder = Path(config["paths"]["runs"]) / f"exact-{build(config['dataset'], 'dataset').name}"
    else:
        folder = find(config["ckpt"])[0]
    return folder / f"{config['name']}.jsonl"


def join_ranks(name: str) -> torch.device:
    """This process's device, after joining the others where torchrun started several; one group serves all the cells of a sweep."""
    kind = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


class Table(Callback):
    """After a sweep: the table of all cells in the file, printed, and saved beside it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook; `config` is that of the command line without what was swept."""
        if int(os.environ.get("RANK", 0)) == 0 and not OmegaConf.is_missing(config, "ckpt"):
            print(table.save(where(plain(config)), "python -m diffusion.evaluate " + " ".join(sys.argv[1:])))


@contextmanager
def processes() -> Iterator[None]:
    """Leave the group of processes at the end, whatever the end."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    with processes():
        shell(main)
