"""The Hydra shell: the schema of plain keys, the resolvers that conf/ uses, and errors as one sentence with an exit code."""

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from diffusion.support.errors import UserError


@dataclass
class TrainSchema:
    """The plain keys of conf/train.yaml and their types; the groups are checked when they are built."""

    name: str = MISSING
    resume: str | None = None
    seed: int = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    p_uncond: float = MISSING
    ema_decay: float = MISSING
    warmup: int = MISSING
    grad_clip: float | None = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    milestone_every: int | None = None
    milestone_n: int = MISSING
    checkpoint_every: int = MISSING
    sample_batch_size: int = MISSING
    matmul_precision: str = MISSING
    data: Any = MISSING
    denoiser: Any = MISSING
    samplers: Any = MISSING
    task: Any = MISSING
    paths: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING
    optimizer: Any = MISSING
    lr_schedule: Any = MISSING
    ema: Any = MISSING
    times: Any = MISSING
    parameterization: Any = MISSING
    schedule: Any = MISSING
    objective: Any = MISSING
    sampler: Any = MISSING
    grid: Any = MISSING
    guidance: Any = field(default_factory=dict)
    metric: Any = field(default_factory=dict)
    network: Any = MISSING
    dataset: Any = MISSING


@dataclass
class SampleSchema:
    """The plain keys of conf/sample.yaml and their types."""

    ckpt: str = MISSING
    n: int = MISSING
    seed: int = MISSING
    classes: list[int] | None = None
    batch_size: int = MISSING
    ema: bool = MISSING
    device: str = MISSING
    trajectory: bool = MISSING
    between: list[int] | None = None
    columns: int | None = None
    out: str | None = None
    sampler: Any = MISSING
    grid: Any = MISSING
    guidance: Any = field(default_factory=dict)
    edit: Any = field(default_factory=dict)


@dataclass
class EvaluateSchema(TrainSchema):
    """The plain keys of conf/evaluate.yaml and their types, beside those that a data set brings for training."""

    ckpt: str = MISSING
    averaged: bool = MISSING
    device: str = MISSING
    floor: bool = MISSING
    out: str | None = None
    dataset: Any = None


def started() -> str:
    """When this run began, YYYYmmdd-HHMMSS; under torchrun when the agent did, so that the ranks of a machine agree."""
    seconds = time.time()
    if "TORCHELASTIC_RUN_ID" in os.environ and Path("/proc").is_dir():
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
        boot = int(re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.M)[1])
        seconds = boot + ticks / os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))


def register() -> None:
    """Make the schemas and resolvers known to Hydra."""
    ConfigStore.instance().store("schema", TrainSchema)
    ConfigStore.instance().store("sample_schema", SampleSchema)
    ConfigStore.instance().store("evaluate_schema", EvaluateSchema)
    OmegaConf.register_new_resolver("out_channels", lambda channels, learned: channels * (2 if learned else 1), replace=True)
    OmegaConf.register_new_resolver("started", started, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("basename", lambda path: Path(path).name, replace=True)
    OmegaConf.register_new_resolver("run_dir", lambda runs, name, resume: resume or f"{runs}/{name}", replace=True)


def resolved(cfg: DictConfig, folder: Path) -> tuple[dict, str]:
    """The configuration of the run in `folder` as plain data, and its source, in which one key still refers to another.

    A resumed run's is its own source.yaml, with the plain values typed now.

    Raises UserError if a resumed run is asked to change a group."""
    if cfg.resume:
        cfg = _resumed(cfg, folder)
    return OmegaConf.to_container(cfg, resolve=True), OmegaConf.to_yaml(cfg)


def _resumed(cfg: DictConfig, folder: Path) -> DictConfig:
    if not (folder / "source.yaml").is_file():
        raise UserError(f"resume={cfg.resume} is not a run's folder: it has no source.yaml.")
    before = OmegaConf.load(folder / "source.yaml")
    for override in HydraConfig.get().overrides.task:
        key = override.split("=")[0].lstrip("+~")
        if OmegaConf.is_dict(OmegaConf.select(before, key)):
            raise UserError(f"{override} would change what the run {folder} is; a resumed run keeps its groups, start a new one instead.")
        OmegaConf.update(before, key, OmegaConf.select(cfg, key), force_add=True)
    before.name = folder.name
    return before
