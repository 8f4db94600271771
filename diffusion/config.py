"""The configuration that Hydra composes, as plain data: conf/'s resolvers, and the words that were typed."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from diffusion.mistyped import CONF, unknown_choice
from diffusion.schemas import TEXTS, EvaluateSchema, SampleSchema, TrainSchema, bare, container, known
from diffusion.support.build import spread, ways
from diffusion.support.errors import UserError
from diffusion.support.host import gpus, has_gpu, started
from diffusion.support.moved import brought_up
from diffusion.support.trust import parsed, vet_source

STAGED = {
    "metric": ("n", "groups", "extractor"),
    "guidance": (),
    "logger": (),
}  # groups of stages, and the settings that one short form may set in all of them

# What a run's weights mean, and what they were trained on and for: settled when it begins. Its data may have moved.
MEANING = (
    "name",
    "task",
    "init",
    "training",
    "dataset",
    "codec",
    "conditions",
    "network",
    "schedule",
    "parameterization",
    "objective",
    "times",
    "ema",
    "seed",
)
PLACES = ("dataset.root", "dataset.cache")
TRAINER = "trainer"  # on what a run is trained: the one group that a resumed run may have another of, in the place of its own
AUTO = "auto"  # resume=auto


def register() -> None:
    """Make the schemas and resolvers known to Hydra."""
    for name, schema in {"schema": TrainSchema, "sample_schema": SampleSchema, "evaluate_schema": EvaluateSchema}.items():
        ConfigStore.instance().store(name, bare(schema))
    OmegaConf.register_new_resolver("started", started, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("gpu_or_cpu", lambda with_gpu, without: with_gpu if has_gpu() else without, replace=True)
    OmegaConf.register_new_resolver("gpus_or", lambda without: len(gpus()) or without, replace=True)
    OmegaConf.register_new_resolver("basename", lambda path: Path(path).name, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("text", unquote, replace=True)


def run_name(name: str) -> str:
    """`name` as that of one file or folder. Raises UserError if it is none."""
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(f"name={name:.50} cannot be the name of a folder: say one word without a /, of at most 200 letters.")
    return name


def run_dir(runs: str, name: str, resume: str | None) -> str:
    """The run's folder. Raises UserError for a file in the place of a folder to resume, before a folder is made of its name."""
    if resume in (None, AUTO):
        return f"{runs}/{run_name(name)}"
    if (file := Path(str(resume))).is_file():
        raise UserError(f"resume={resume} is a file; a run goes on from its last checkpoint by its folder: resume={file.parent.parent}.")
    return str(resume)


def words() -> dict[str, str]:
    """The words that the user or a sweep typed, by key, with no reference in them resolved."""
    return typed_in(_task())


def job_words() -> list[str]:
    """The words of this job as they were typed, or as a sweep says them, with no reference in them resolved and no mark of a text."""
    return [f"{key}{equals}{unescaped(value)}" for key, equals, value in (word.partition("=") for word in _task())]


def _task() -> list[str]:
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return typed


def typed_in(said: Sequence[str]) -> dict[str, str]:
    """Words KEY=VALUE by key."""
    split = (word.lstrip("+~").partition("=") for word in said)
    return {key.split("@")[0]: unescaped(value) for key, _, value in split}


def escaped(text: str) -> str:
    """A text so that neither Hydra nor OmegaConf finds anything in it to read: its marks by their numbers, behind the resolver `text`."""
    return f"""'${{text:"{quote(text, safe=" ", errors="replace")}"}}'"""


def unescaped(value: str) -> str:
    """The text of a `escaped` value, and any other value as it is."""
    found = re.fullmatch(r"""'\$\{text:"(.*)"}'""", value)
    return unquote(found[1]) if found else value


def told(cfg: DictConfig, typed: Collection[str]) -> list[Path]:
    """Where a command that reads a run's folder may write: in the places that it names itself, typed or by its own `paths`, and in that
    folder."""
    named = [OmegaConf.select(cfg, key) for key in typed if key not in TEXTS] + list(cfg.get("paths", {}).values())
    places = [Path(value) for value in named if isinstance(value, str) and value]
    return places + [place.parents[1] for place in places if os.path.isfile(place) and len(place.parents) > 1]  # of a checkpoint, its run


def plain(cfg: DictConfig, typed: Collection[str] = (), schema: type = TrainSchema) -> dict[str, Any]:
    """A composed configuration as plain data, not resolved, in which each stage has its own settings.

    Raises UserError for a key that no command knows, and for a short form that no stage takes or that is not clear."""
    known(cfg, schema)
    content = container(cfg, resolve=False)
    for group, alike in STAGED.items():
        if group in content:
            content[group] = spread(content[group] or {}, group, typed, alike)
    for name, way in ways(content).items():
        if name in content.get("samplers", {}) and "guidance" in content["samplers"][name]:
            content["samplers"][name]["guidance"] = spread(way["guidance"], f"samplers.{name}.guidance", typed)
    return content


def settled(content: Any) -> Any:
    """Plain data in which what follows from the machine, `${gpu_or_cpu:...}`, is said: a run goes on the same on another one."""
    if isinstance(content, Mapping):
        return {key: settled(value) for key, value in content.items()}
    if isinstance(content, str) and content.startswith("${gpu_or_cpu:"):
        return OmegaConf.create({"value": content})["value"]
    return content


def resolved(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with its references resolved."""
    return container(OmegaConf.create(dict(content)), resolve=True)


def resumes(cfg: DictConfig, folder: Path) -> bool:
    """Whether this command goes on with the run in `folder`: with resume=auto, if there is a checkpoint."""
    return any((folder / "checkpoints").glob("*.ckpt")) if cfg.resume == AUTO else cfg.resume is not None


def configuration(cfg: DictConfig, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of the training in `folder` as plain data, and where it came from, a text for each file: source.yaml, in which
    one key still refers to another, and words.yaml, the words of the command line.

    A resumed run's is its own source.yaml, with the plain values typed now; resume=auto resumes what has a checkpoint.

    Raises UserError if a resumed run is asked to change what it is, and for resume=auto of a name that is another each time."""
    if cfg.resume == AUTO and "${started:" in str(container(cfg, resolve=False)["name"]):
        raise UserError("resume=auto goes on with the run of a name, if there is one: say name=NAME too.")
    goes_on = resumes(cfg, folder)
    content = _resumed(cfg, folder) if goes_on else settled(plain(cfg, words()))
    content["resume"] = str(folder) if goes_on else None
    for group in (key for key, value in content.items() if value == MISSING and (CONF / key).is_dir()):  # of GROUP=[]
        raise UserError(f"{unknown_choice(group, words().get(group, MISSING))}.")
    for key in ("trust", "launcher", "sweeper"):  # permission is given each time, and never recorded; and by whom it is run
        content.pop(key, None)
    typed = words_said(folder / "words.yaml" if goes_on else None)
    said = {"source.yaml": content, "words.yaml": {**typed, "hash": training_hash(content)}}
    return resolved(content), {name: yaml.safe_dump(data, sort_keys=False) for name, data in said.items()}


def training_hash(content: Mapping[str, Any]) -> str:
    """The hash of what a training is: of its configuration, resolved, less its name, where things are, loggers, what others published, and
    `minutes` if there is no limit. The order of stages counts, that of other keys does not."""
    apart = {"name": "", "resume": None, "logger": {}, "published": {}, "paths": dict.fromkeys(content.get("paths", {}), "")}
    config = resolved({**content, **apart})
    if config.get("minutes") is None:  # as in a training of before there was a limit
        config.pop("minutes", None)
    config["dataset"] = {key: value for key, value in config["dataset"].items() if key != "cache"}
    order = [list(config[group]) for group in STAGED]
    return sha256(json.dumps([config, order], sort_keys=True, default=str).encode()).hexdigest()[:32]


def words_said(before: Path | None = None) -> dict[str, dict[str, str]]:
    """`typed`: the words that were typed, by key; `choices`: each group's word, be it typed, brought along or the default. A resumed run
    keeps the words of the file `before`, and adds those typed now; permission (`trust`) is given each time, and never recorded."""
    typed = {key: value for key, value in words().items() if key not in ("trust", "resume")}
    if before is None:
        choices = HydraConfig.get().runtime.choices
        return {"typed": typed, "choices": {group: str(word) for group, word in choices.items() if word and "/" not in group}}
    kept, choices = (_words_before(before)[part] for part in ("typed", "choices"))
    if (word := typed.get(TRAINER)) not in (None, {**choices, **kept}.get(TRAINER)):  # another one, without what was said of the first
        kept, choices = {key: value for key, value in kept.items() if key.partition(".")[0] != TRAINER}, {**choices, TRAINER: word}
    return {"typed": {**kept, **typed}, "choices": choices}


def _words_before(file: Path) -> dict[str, dict[str, str]]:
    """What a run's words.yaml says; a run of an older version has none."""
    old = parsed(file.read_text(), str(file)) if file.is_file() else {}
    kept = {name: part for name, part in old.items() if isinstance(part, dict)} if isinstance(old, dict) else {}
    return {"typed": {}, "choices": {}} | kept


def _resumed(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    if not (folder / "source.yaml").is_file():
        raise UserError(f"resume={cfg.resume} is not a run's folder: it has no source.yaml.")
    source = parsed((folder / "source.yaml").read_text(), str(folder / "source.yaml"))
    vet_source(source, str(folder / "source.yaml"))
    before, own_words = OmegaConf.create(brought_up(source, str(folder / "source.yaml"))), _words_before(folder / "words.yaml")
    before.name = folder.name
    said = {**own_words["choices"], **own_words["typed"], "name": folder.name}  # a folder may have been renamed
    typed = {key: value for key, value in words().items() if key not in ("resume", "trust") and value != said.get(key)}
    for key in typed:
        whole, meant = (CONF / key).is_dir() or OmegaConf.is_config(OmegaConf.select(before, key)), meaning(before)
        kept = whole and key != TRAINER
        if not kept:
            OmegaConf.update(before, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
        if kept or "_target_" in key or meaning(before) != meant:
            raise UserError(
                f"{key}={typed[key]} would change what the run {folder} is; a resumed run keeps every group but {TRAINER}: start a new one."
            )
    return plain(before, typed)


def meaning(config: DictConfig) -> dict[str, Any]:
    """What a run's weights mean, with its references resolved: a plain key such as ema_decay stands in it too."""
    found = OmegaConf.masked_copy(config, [key for key in MEANING if key in config])
    found._set_parent(config)  # to which it refers
    content = container(found, resolve=True)
    content["dataset"] = {key: value for key, value in content.get("dataset", {}).items() if f"dataset.{key}" not in PLACES}
    return content


def own(run: Mapping[str, Any], cfg: DictConfig, typed: Mapping[str, str]) -> dict[str, Any]:
    """A run's own sampler, grid and guidance (those of its way to sample that `way` names), metrics and data set, changed by what was
    typed: grid.steps=20 changes that of its grid, sampler=heun is another sampler, on the grid that it brings if it brings one, and
    guidance.scale=2 goes to the stage of the run that has a scale.

    Raises UserError as `plain` does, and for a way that the run has not."""
    found = ways(run)
    if cfg.way not in found:
        raise UserError(f"way={cfg.way} is none of the run's ways to sample, which are {', '.join(found)}.")
    run, result = {**run, **found[cfg.way]}, {}
    for group, brought_by in (("sampler", None), ("grid", "sampler"), ("guidance", None), ("metric", "dataset"), ("dataset", None)):
        if group not in cfg:
            continue
        chosen = container(cfg[group], resolve=True) if cfg[group] else {}
        names_a_class = "_target_" in chosen or any(isinstance(v, dict) and "_target_" in v for v in chosen.values())
        if group in typed or (brought_by in typed and names_a_class):
            result[group] = chosen
        else:
            result[group] = _changed_by(typed, group, run[group], cfg)
            if group in STAGED:  # what a sweep's file says of all stages
                result[group] |= {key: value for key, value in chosen.items() if not isinstance(value, dict)}
        if group == "guidance" and (negative := cfg.get("negative_prompt")) is not None:
            if "guidance.negative" in typed or not any("negative" in stage for stage in result[group].values() if isinstance(stage, dict)):
                raise UserError(
                    f"negative_prompt={negative} is what guidance=[cfg] guides away from, by a guidance.scale above 1: say that guidance, "
                    "and no guidance.negative beside it."
                )
            result[group]["negative"] = negative
        if group in STAGED:
            result[group] = spread(result[group], group, typed, STAGED[group])
    return result


def _changed_by(typed: Collection[str], group: str, settings: Mapping[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """A run's settings of a group, with what was typed of single ones. Of a group of stages only the stages are taken: a short form that
    stands in a file was not said by the user, and might name any class."""
    stages = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    node = OmegaConf.create(stages if group in STAGED else dict(settings))
    for key in typed:
        if key.startswith(f"{group}."):
            OmegaConf.update(node, key.removeprefix(f"{group}."), OmegaConf.select(cfg, key), force_add=True)
    return container(node, resolve=False)


def brought(cfg: DictConfig, among: Collection[str] = ()) -> list[str]:
    """The choices, of these groups or of all, that those on the command line brought along, as group=choice: a data set its network, a
    sampler its grid. None in a resumed run, which keeps its own."""
    if cfg.get("resume") not in (None, AUTO):
        return []
    hydra, typed = HydraConfig.get(), words()
    conf = next(source.path for source in hydra.runtime.config_sources if source.provider == "main")
    listed = yaml.safe_load((Path(conf) / f"{hydra.job.config_name}.yaml").read_text())["defaults"]
    defaults = {group: choice for entry in listed if isinstance(entry, dict) for group, choice in entry.items()}
    found = {group: hydra.runtime.choices.get(group) for group in defaults}
    for group in {"metric", "guidance"} & defaults.keys():
        found[group] = [name for name, stage in cfg.get(group, {}).items() if OmegaConf.is_config(stage)]
    return [
        f"{group}={'[' + ','.join(choice) + ']' if isinstance(choice, list) else choice}"
        for group, choice in found.items()
        if group not in typed and choice not in (None, [], defaults[group]) and group in (among or defaults)
    ]
