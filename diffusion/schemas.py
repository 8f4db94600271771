"""The plain keys of the commands: their types, and of numbers their ranges. The groups are checked when they are built."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf

from diffusion.support.errors import UserError, did_you_mean
from diffusion.support.ranges import (
    Count,
    Decay,
    Few,
    Images,
    Limit,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Several,
    Share,
    plain_type,
    refused,
)

TEXTS = ("prompt", "negative_prompt")  # keys whose values are texts, taken as they are typed
PATHS = ("ckpt", "images", "reference")  # keys whose values, where they name what is there, are
Compile = Literal["auto", "off", "blocks", "network", "step"]
MatMul = Literal["highest", "high", "medium"]  # torch's words


def open_node() -> Any:
    """A node that accepts new keys: short forms, and the settings of a run that is not known yet."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class TrainSchema:
    """The plain keys of conf/train.yaml and their types and ranges; the groups are checked when they are built."""

    name: str = MISSING
    resume: str | None = None
    seed: Seed = MISSING
    steps: Count = MISSING
    minutes: Positive | None = None
    batch_size: Images = MISSING
    accumulate: Few = MISSING
    precision: str = MISSING
    compile: Compile = MISSING
    deterministic: bool = MISSING
    p_uncond: Share = MISSING
    ema_decay: Decay = MISSING
    warmup: Natural = MISSING
    grad_clip: Limit | None = MISSING
    log_every: Count = MISSING
    eval_every: Count = MISSING
    eval_at_start: bool = MISSING
    milestone_every: Count | None = None
    milestone_n: Several = MISSING
    checkpoint_every: Count = MISSING
    keep_best: str | None = None
    sample_batch_size: Images = MISSING
    matmul_precision: MatMul = MISSING
    init: Any = MISSING
    data: Any = MISSING
    trust: Any = field(default_factory=list)  # a package or several
    samplers: Any = field(default_factory=open_node)
    launcher: Any = field(default_factory=open_node)
    sweeper: Any = field(default_factory=open_node)
    task: Any = MISSING
    training: dict[str, Any] = MISSING
    paths: Any = MISSING
    trainer: Any = MISSING
    logger: Any = field(default_factory=open_node)
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
    guidance: Any = field(default_factory=open_node)
    metric: Any = field(default_factory=open_node)
    network: Any = MISSING
    conditions: Any = MISSING
    codec: Any = MISSING
    dataset: Any = MISSING
    published: Any = None


@dataclass
class SampleSchema:
    """The plain keys of conf/sample.yaml, their types and ranges."""

    ckpt: str = MISSING
    n: Images | None = None
    seed: Seed = MISSING
    classes: Any = None
    prompt: str | None = None
    negative_prompt: str | None = None
    prompts: str | None = None
    height: Few | None = None
    width: Few | None = None
    averaged: bool = MISSING
    precision: str | None = None
    sample_batch_size: Images | None = None
    graphs: bool = MISSING
    device: str = MISSING
    trajectory: bool = MISSING
    between: tuple[Seed, Seed] | None = None
    columns: Few | None = None
    out: str | None = None
    way: str = "main"
    trust: Any = field(default_factory=list)  # a package or several
    paths: Any = field(default_factory=open_node)
    sampler: Any = field(default_factory=open_node)
    grid: Any = field(default_factory=open_node)
    guidance: Any = field(default_factory=open_node)
    edit: Any = field(default_factory=dict)


@dataclass
class EvaluateSchema(TrainSchema):
    """The plain keys of conf/evaluate.yaml, their types and ranges, beside those that a data set brings for training."""

    ckpt: str | None = None
    images: str | None = None
    reference: str | None = None
    averaged: bool = MISSING
    graphs: bool = MISSING
    device: str = MISSING
    floor: bool = MISSING
    keep_features: NonNegative = MISSING
    out: str | None = None
    way: str = "main"
    precision: str | None = None  # type: ignore[assignment]  # null stands for the run's own
    sample_batch_size: Images | None = None  # type: ignore[assignment]
    sampler: Any = field(default_factory=open_node)
    grid: Any = field(default_factory=open_node)
    dataset: Any = field(default_factory=open_node)


def container(cfg: Any, resolve: bool) -> dict[str, Any]:
    """A node of a configuration, a mapping, as plain data; OmegaConf's own function may return any kind of data."""
    content: Any = OmegaConf.to_container(cfg, resolve=resolve)
    return content


def bare(schema: type) -> type:
    """The schema without ranges, whose annotations Hydra does not know."""
    plain = [(f.name, plain_type(f.type), field(default=f.default, default_factory=f.default_factory)) for f in fields(schema)]
    return make_dataclass(schema.__name__, plain)


def known(cfg: DictConfig, schema: type) -> None:
    """Raises UserError for a key that the command does not know, as +KEY=VALUE can add, and for a plain value out of its range."""
    declared = {f.name: f.type for f in fields(schema)}
    for key, value in container(cfg, resolve=False).items():
        if key not in declared:
            hint = did_you_mean(str(key), declared)
            raise UserError(f"{key!s} is not a key of this command; its keys are {', '.join(sorted(declared))}{hint}.")
        referring = isinstance(value, str) and ("${" in value or value == MISSING)
        if not referring and (wrong := refused(value, declared[key])):
            raise UserError(f"{key}{wrong}.")
