"""One job of a sweep: trained, gone on with, or skipped, and what came of it as a row and as a number."""

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from diffusion.config import AUTO, configuration, register, words
from diffusion.mistyped import CONF
from diffusion.shell import begin, sentence
from diffusion.support.errors import Refused, UserError
from diffusion.support.files import lock
from diffusion.support.ranges import Few, refused
from diffusion.support.trust import packages
from diffusion.sweeps.ledger import HIDDEN, Ledger, results
from diffusion.sweeps.share import take_share

Train = Callable[[DictConfig, dict[str, Any], dict[str, str], Path], object]  # of cfg, its configuration, where that is from, a folder
LEFT: list[int] = []  # the exit code of this process, once a signal has ended a job of it
FOLLOWING = "ends with its sweep"  # a thread
log = logging.getLogger(__name__)
register()  # in each process that has jobs of a sweep


def swept() -> bool:
    """Whether this is a job of a sweep."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def require_one_run(cfg: DictConfig) -> None:
    """Raises UserError for the words of a sweep where there is none."""
    choices = HydraConfig.get().runtime.choices
    for group in ("launcher", "sweeper"):
        if choices.get(group) not in (None, "basic"):
            raise UserError(f"{group}={choices[group]} is for a sweep: say python train.py -m, and the words to sweep.")
    require_settings_of_a_word(cfg)


def require_settings_of_a_word(cfg: DictConfig) -> None:
    """Raises UserError for launcher.KEY and sweeper.KEY that the word does not have, and for a number of jobs at once that is none."""
    for group in ("launcher", "sweeper"):
        word, settings = HydraConfig.get().runtime.choices.get(group), cfg.get(group) or {}
        file = CONF / group / f"{word}.yaml"
        known = (yaml.safe_load(file.read_text()).get(group) or {}) if file.is_file() else settings
        if strange := [f"{group}.{key}" for key in settings if key not in known]:
            has = f"has {', '.join(f'{group}.{key}' for key in known)}" if known else "has none"
            raise UserError(f"{strange[0]} is not a setting of {group}={word}, which {has}.")
        if (program := settings.get("program")) and shutil.which(program) is None:
            raise UserError(f"{group}={word} needs the command {program}, which this machine has not: start it where there is one.")
        if "n_jobs" in settings and (wrong := refused(settings["n_jobs"], Few)):
            raise UserError(f"{group}.n_jobs{wrong}.")


def one_job(cfg: DictConfig, train: Train) -> float:
    """Train, unless it is done already, and return the last value of the run's first metric: NaN for a run that has none, or has failed,
    which ends no other job. A signal ends the sweep, as SystemExit."""
    if LEFT:
        raise SystemExit(LEFT[0])
    hydra, number = HydraConfig.get(), math.nan
    made = Path(hydra.runtime.output_dir)
    if at_once := cfg.get("launcher", {}).get("n_jobs"):
        take_share(at_once, made.parent / HIDDEN)
    row: dict[str, Any] = {"job": hydra.job.num, "words": words(), "folder": "", "why": ""}
    with recorded(row), begin(made, cfg.trust), left_in_peace():
        end_with_the_sweep()
        row["state"] = attempt(cfg, made, train, row)
        row |= results(row["folder"])
        number = row["value"] = objective(row)
    return number


def attempt(cfg: DictConfig, made: Path, train: Train, row: dict[str, Any]) -> str:
    """What was done: "skipped", if a finished run in the sweep's folder has this configuration, else "done", in the folder of one that is
    not finished, or in a new one; which is said in `row`. Jobs of one configuration wait for one another.

    Raises UserError or ValueError with one sentence for an error that the user can correct."""
    if cfg.resume not in (None, AUTO):
        raise UserError(f"resume={cfg.resume} is for one run; a sweep that was stopped goes on by the command that began it.")
    cfg.resume = None
    identity = yaml.safe_load(configuration(cfg, made)[1]["words.yaml"])["hash"]
    with alone_with(identity, made.parent):
        folder, step, finished = run_to_be(identity, made, cfg.steps)
        row["folder"] = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)  # as it is typed from here
        if finished:
            log.info("job %s is done already, in %s", HydraConfig.get().job.num, folder)
            return "skipped"
        with output_in(folder):
            config, sources = configuration(cfg, folder)
            if step is not None:
                log.info("job %s goes on in %s, from step %d", HydraConfig.get().job.num, folder, step)
                config["resume"], cfg.trust = str(folder), [*packages(cfg.trust), *of_ones_own()]
            train(cfg, config, sources, folder)
        return "done"


def run_to_be(identity: str, made: Path, steps: int) -> tuple[Path, int | None, bool]:
    """The folder for a job of this identity, the step of its last checkpoint, None without one, and whether all its steps are made: that of
    a run which has it, the furthest of several; else `made`, or, if another run is there, a name beside it."""
    from diffusion.checkpoint import read  # slow to import, as is all that knows checkpoints
    from diffusion.training.callbacks.interruption import owed, timed_out

    same = [file.parent for file in sorted(made.parent.glob("*/words.yaml")) if f"hash: {identity}\n" in file.read_text(errors="replace")]
    known = []
    for folder in same:
        if any((folder / "checkpoints").glob("*.ckpt")):
            content = read(folder)[1]
            known.append((content["global_step"], (content["global_step"] >= steps or timed_out(content)) and not owed(content), folder))
    if known:
        step, finished, folder = max(known, key=lambda run: run[:2])
        return folder, step, finished
    if same:
        return same[0], None, False
    return (made.with_name(f"{made.name}-{identity[:8]}") if (made / "words.yaml").exists() else made), None, False


@contextmanager
def alone_with(identity: str, runs: Path) -> Iterator[None]:
    """Wait until no other process has a job of this identity. Under torchrun, whose other ranks would not wait, UserError if one has."""
    if int(os.environ.get("RANK", 0)):
        yield
        return
    file = runs / HIDDEN / f"{identity}.lock"
    try:
        with lock(file, wait=False):
            pass
    except BlockingIOError:
        said = f"another process trains what job {HydraConfig.get().job.num} would"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"{said}, and torchrun's ranks do not wait for it: say this again when it has ended.") from None
        log.info("%s: it is waited for", said)
    with lock(file):
        yield


@contextmanager
def output_in(folder: Path) -> Iterator[None]:
    """Hydra's output folder, to which loggers refer, as this one."""
    runtime: Any = HydraConfig.get().runtime  # a node, which Hydra calls by the class of its values
    with read_write(runtime), open_dict(runtime):
        before, runtime.output_dir = runtime.output_dir, str(folder)
    try:
        yield
    finally:
        with read_write(runtime), open_dict(runtime):
            runtime.output_dir = before


def of_ones_own() -> list[str]:
    """The packages of classes that this command itself names: of a run that has the same configuration they are trusted too."""
    return sorted({value.partition(".")[0] for key, value in words().items() if key.endswith("._target_")} - {"diffusion", "torch"})


def objective(row: Mapping[str, Any]) -> float:
    """The last value of the run's first metric, by the name under which it is recorded, which n and the data may settle; NaN without."""
    from diffusion.checkpoint import read_config

    if (metric := first_metric(read_config(Path(row["folder"]))["metric"])) is None:
        return math.nan
    word = getattr(metric, "word", None) or metric.name.partition("@")[0]
    named = [value for key, value in row.get("numbers", {}).items() if key.partition("@")[0] == word and "/" not in key]
    return float(named[0]) if named else math.nan


def first_metric(stages: Mapping[str, Any]) -> Any:
    """The first metric of a run's; None if it has none."""
    from diffusion.support.build import build_stages

    return next(iter(build_stages(dict(list(stages.items())[:1]), "metric").values()), None)


@contextmanager
def recorded(row: dict[str, Any]) -> Iterator[None]:
    """The row of a job, as it begins and as it ends. An error is its end, and not the sweep's; a signal is that of this process."""
    ledger = Ledger.current()
    say = ledger.record if ledger else lambda row: None
    say(row | {"state": "running"})
    try:
        yield
    except Refused as end:
        row |= {"state": "failed", "why": end.sentence}
    except (KeyboardInterrupt, SystemExit) as end:
        code = end.code if isinstance(end, SystemExit) else 128 + signal.SIGINT
        LEFT.append(code if isinstance(code, int) else 1)
        name = signal.Signals(LEFT[0] - 128).name if LEFT[0] > 128 else f"exit code {LEFT[0]}"
        say(row | {"state": "stopped", "why": name} | results(row["folder"]) | saved(row["folder"]))
        raise SystemExit(LEFT[0]) from None  # of a kind that another process can read
    except Exception as error:  # of a sentence where tracebacks are asked for, and of a mistake of the code
        log.exception("job %s failed", row["job"])
        row |= {"state": "failed", "why": sentence(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if row["state"] == "failed":
        row |= results(row["folder"])
        log.error("job %s failed: %s", row["job"], row["why"])
    say(row)
    if row["state"] == "failed" and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun's other ranks would wait in this job for ever
        raise SystemExit(1) from None


def saved(place: str) -> dict[str, Any]:
    """The step from which a stopped run will go on, which may be later than its last line; empty for one that has saved nothing."""
    from diffusion.checkpoint import read

    with suppress(UserError, OSError):
        if place and any((Path(place) / "checkpoints").glob("*.ckpt")):
            return {"step": read(Path(place))[1]["global_step"]}
    return {}


@contextmanager
def left_in_peace() -> Iterator[None]:
    """On a cluster, whose SIGUSR2 says that the job will be queued again (submitit has a handler): the training is first left as by
    SIGUSR1, with nothing lost, and then that handler is called."""
    again = signal.getsignal(signal.SIGUSR2) if hasattr(signal, "SIGUSR2") else None
    if not callable(again) or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # the training has not begun
            again(signum, frame)
            return
        heard.append((signum, frame))
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR2, note)
    try:
        yield
    except SystemExit:
        if heard:
            again(*heard[0])
        raise
    finally:
        signal.signal(signal.SIGUSR2, again)


def end_with_the_sweep() -> None:
    """In another process than the sweep's own: end this one, as by SIGTERM, when the sweep was stopped or has ended, however it did. Raises
    SystemExit where it has already, as for a job that was still loading."""
    ledger = Ledger.current()
    if ledger is None or ledger.at_home():
        return
    if ledger.over():
        raise SystemExit(128 + signal.SIGTERM)

    def watch() -> None:
        while not ledger.over():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if not any(thread.name == FOLLOWING for thread in threading.enumerate()):
        threading.Thread(target=watch, name=FOLLOWING, daemon=True).start()
