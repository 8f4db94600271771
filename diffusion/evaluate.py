"""python -m diffusion.evaluate ckpt=runs/NAME metric=fd_digits — the metrics of a run's images; with -m or sweep=samplers, a table.
python -m diffusion.evaluate images=FOLDER reference=cifar10 metric=fid — those of images that are there already."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from diffusion.config import STAGED, brought, own, register, run_name, told, words
from diffusion.evaluation import EXACT
from diffusion.mistyped import plainly
from diffusion.published import NOTHING, Published
from diffusion.schemas import EvaluateSchema, container, known
from diffusion.shell import begin, shell
from diffusion.support.build import build, spread
from diffusion.support.errors import UserError
from diffusion.support.files import require_writable
from diffusion.support.progress import loading

PLACE = ("name", "out", "paths")  # of the lines
OWN = (
    "ckpt",
    "images",
    "reference",
    "averaged",
    "seed",
    "precision",
    "sample_batch_size",
    "graphs",
    "device",
    "floor",
    "keep_features",
    *PLACE,
)
CHANGED = ("sampler", "grid", "guidance", "metric", "dataset", "reference", "sweep", "way", "trust", "published")
HERE = ("device", "sweep", "trust", *PLACE)  # what is said of any command
OF_IMAGES = ("images", "reference", "dataset", "metric", "sample_batch_size", "floor", "keep_features", "published", *HERE)
OF_EXACT = ("dataset", "schedule", "codec", "conditions")
log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="evaluate")
def main(cfg: DictConfig) -> Published | None:
    """One cell; under -m or with a sweep, each of the table's, which is told the published numbers beside it."""
    with begin(trust=cfg.trust, places=told(cfg, words())):
        known(cfg, EvaluateSchema)
        if along := brought(cfg, ("grid", "metric")):
            log.info("brought along: %s", ", ".join(along))
        return measured_cell(cfg, words())


def measured_cell(cfg: DictConfig, typed: dict[str, str]) -> Published | None:
    """Measure what was typed, unless it is in the file already, and return the published numbers beside it; of a reference alone, keep its
    statistics."""
    typed = with_reference(cfg, typed)
    config = settings(cfg)
    file = where(config)
    with loading("torch and the run"):  # slow, so that --help and a mistyped word have been answered by now
        from diffusion.evaluation import cells

    if config["ckpt"] is None and config["images"] is None:
        reference_alone(cfg, config, typed, file)
        return None
    subject, way = asked_for(cfg, config, typed)
    cells.evaluate(subject, way, config, typed, file)
    return subject.published


def reference_alone(cfg: DictConfig, config: dict[str, Any], typed: dict[str, str], file: Path) -> None:
    """The statistics of a reference alone, to the file."""
    from diffusion.evaluation import given, subjects
    from diffusion.support.devices import join_ranks

    device, path = join_ranks(config["device"]), config["reference"]
    data = given.reference(Path(path), config["paths"]["cache"]) if path else subjects.data_set(config["dataset"])
    given.keep_statistics(data, metrics_typed(cfg, typed), device, file)


def asked_for(cfg: DictConfig, config: dict[str, Any], typed: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """(the `Subject` that these words name, its own way to sample, metrics and data set, with what was typed). Raises UserError for what is
    none."""
    from diffusion.checkpoint import load
    from diffusion.evaluation import cells, given, subjects
    from diffusion.support.devices import join_ranks

    device = join_ranks(config["device"])
    run: Mapping[str, Any] = config
    real = given.reference(Path(config["reference"]), config["paths"]["cache"]) if config["reference"] else None
    if config["ckpt"] is None:
        data = subjects.data_set(config["dataset"]) if real is None else real
        metrics = metrics_typed(cfg, typed)
        images, metrics = given.given(config["images"], config["paths"]["cache"], data, metrics, typed)
        subject = subjects.Subject(images, device, data, {"step": images.step, "images": 0})
        way = dict.fromkeys(cells.WAY) | {"metric": metrics}
    elif config["ckpt"] == EXACT:
        subject = subjects.exact(config, device)
        way = own_way(subject.model, cfg, typed)
    else:
        model = load(config["ckpt"], config["averaged"]).to(device, config["precision"])
        if "metric" not in model.config:
            raise UserError(f"ckpt={config['ckpt']} is not a run, and has no data to be compared with: sample it by sample.py.")
        way, run = own_way(model, cfg, typed), model.config
        subject = subjects.trained(model, way["dataset"], device, real)
    if real is not None:
        subject = subject._replace(data=real)
    return subject._replace(published=numbers_beside(cfg, {**run, **way})), way


def numbers_beside(cfg: DictConfig, run: Mapping[str, Any]) -> Published:
    """The published numbers: those that are typed, or those that the run names. Raises UserError for what is none."""
    typed = None if cfg.published is None else container(cfg.published, resolve=True)
    return Published.of(run.get("published") if typed is None else typed, run)


def with_reference(cfg: DictConfig, typed: dict[str, str]) -> dict[str, str]:
    """The words with reference=WORD, where it is a data set's, as dataset=WORD: the data set is put into the configuration.

    Raises UserError for what is neither a data set nor a path."""
    word = cfg.reference
    if not word or os.path.exists(word):
        return typed
    if "/" in word or Path(word).suffix:
        raise UserError(f"There is no file or folder {word}, which reference={word} names.")
    settings = [f"{key}={value}" for key, value in typed.items() if key.startswith(("dataset.", "paths."))]
    try:
        cfg.dataset, cfg.reference = compose("evaluate", [f"dataset={word}", *settings]).dataset, None
    except HydraException as error:
        raise UserError(f"reference={word} is no file and no folder, and {plainly(error).rstrip('.')}.") from error
    return {key: value for key, value in typed.items() if key != "reference"} | {"dataset": word}


def metrics_typed(cfg: DictConfig, typed: dict[str, str]) -> dict[str, Any]:
    """The metrics for images that no run of ours made. Raises UserError for a word about a model, of which there is none."""
    for key, value in typed.items():
        if key.split(".")[0] not in OF_IMAGES:
            raise UserError(f"{key}={value} is for a model, and images={cfg.images} are made already; leave it out.")
    cfg.sample_batch_size = cfg.sample_batch_size or 256  # a metric's file refers to it
    return spread(container(cfg.metric, resolve=True), "metric", typed, STAGED["metric"])


def own_way(model: Any, cfg: DictConfig, typed: dict[str, str]) -> dict[str, Any]:
    """The model's own way to sample, metrics and data set, with what was typed.

    Raises UserError for a word that a run has settled and that cannot be changed here."""
    if cfg.ckpt != EXACT:
        for key, value in typed.items():
            if key.split(".")[0] not in (*OWN, *CHANGED):
                raise UserError(f"{key}={value} is for ckpt={EXACT} or for train.py; the run {cfg.ckpt} has its own, which stays.")
    for key in ("precision", "sample_batch_size"):  # a metric's file refers to them
        cfg[key] = model.config[key] if cfg[key] is None else cfg[key]
    return own(model.config, cfg, typed)


def settings(cfg: DictConfig) -> dict[str, Any]:
    """The keys that are used here, resolved; others, which a data set's file sets for training, may refer to keys that are missing here.

    Raises UserError if there is nothing to measure, or two things."""
    for key in ("ckpt", "images", "reference", "out"):
        if cfg[key] == "":
            raise UserError(f"{key}= names nothing: say what it is, or leave it out.")
    if cfg.ckpt is not None and cfg.images is not None:
        raise UserError(f"ckpt={cfg.ckpt} and images={cfg.images} are two things to measure: say one of them.")
    kept = str(cfg.out or "").endswith(".npz")
    if cfg.ckpt is None and cfg.images is None and not (kept and (cfg.reference or cfg.dataset)):
        raise UserError(
            f"Say what to measure: ckpt=runs/NAME, images=FOLDER reference=cifar10, or ckpt={EXACT} dataset=digits for a data set's exact "
            "denoiser; of a reference alone, out=FILE.npz keeps its mean and covariance."
        )
    if kept and (cfg.ckpt or cfg.images):
        raise UserError(f"out={cfg.out} would hold statistics of a reference, and lines of numbers are written: say out=FILE.jsonl.")
    if cfg.images is not None and not (cfg.reference or cfg.dataset):
        raise UserError(f"images={cfg.images} are compared with real images: say reference=cifar10, a FOLDER, or a FILE.npz.")
    values = {key: cfg[key] for key in (*OWN, *OF_EXACT)}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in values.items()}


def where(config: dict[str, Any]) -> Path:
    """The file that the lines are written to. Raises UserError if it cannot be written."""
    file = Path(config["out"]) if config["out"] else folder_of(config) / f"{run_name(config['name'])}.jsonl"
    require_writable(file.parent, "out")
    if file.suffix == ".npz" and file.exists():
        from diffusion.metrics.statistics import is_ours

        if not is_ours(file):
            raise UserError(f"out={file} is there, and holds no statistics of this command: say another name.")
    if file.is_dir():
        raise UserError(f"out={file} is a folder; say a file in it, as out={file / 'metrics.jsonl'}.")
    return file


def folder_of(config: dict[str, Any]) -> Path:
    """The run's folder, or that of a data set's exact denoiser, or of images."""
    if config["images"]:
        return Path(config["paths"]["runs"]) / f"images-{Path(config['images']).resolve().stem}"
    if config["ckpt"] == EXACT:
        return Path(config["paths"]["runs"]) / f"exact-{build(config['dataset'], 'dataset').name}"
    from diffusion.checkpoint import find
    from diffusion.foreign.published import is_folder

    if is_folder(config["ckpt"]):  # which is not ours to write to
        return Path(config["paths"]["runs"]) / f"model-{Path(config['ckpt']).resolve().name}"
    return find(config["ckpt"])[0]


class Table(Callback):
    """After a sweep: the table of all cells in its file, printed, and saved beside it; of several runs, whose files lie in their own
    folders, in runs/NAME.md."""

    def __init__(self) -> None:
        self.files: dict[Path, None] = {}  # in order
        self.published: dict[str, Published] = {}  # beside the numbers of each run, or of what is in its place

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra's hook, after each cell."""
        if job_return.status is JobStatus.COMPLETED:
            self.files[where(settings(config))] = None
            self.published[config.images or config.ckpt] = job_return.return_value or NOTHING

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook; `config` is that of the command line without what was swept."""
        if int(os.environ.get("RANK", 0)) == 0 and self.files:
            from diffusion.evaluation import tables

            together = Path(config.paths.runs) / f"{run_name(config.name)}.jsonl"
            path = next(iter(self.files)) if len(self.files) == 1 else together
            print(tables.save(path, "python -m diffusion.evaluate " + " ".join(sys.argv[1:]), self.files, self.published))


if __name__ == "__main__":
    shell(main)
