"""From a composed configuration to objects: `{_target_: package.Class, key: value}` becomes `package.Class(key=value)`.

The rule is that of Hydra's `instantiate`, applied to plain data without Hydra, so that a checkpoint loads in a notebook. An error is one
sentence that names the key as it is typed on the command line.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from typing import Any

from diffusion.support.errors import UserError, did_you_mean
from diffusion.support.ranges import SCALARS, annotations, refused

WORDS = ("_target_", "_partial_", "_optional_")  # of a node, beside the settings of what it builds
log = logging.getLogger(__name__)


def locate(target: str) -> Callable:
    """The class or function that a dotted path names. Raises ValueError with the path if there is none."""
    if not isinstance(target, str):  # of a configuration, which may say anything
        raise ValueError(f"_target_={target} is not the name of a class; write it as package.Class.")
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: of a relative name
        raise ValueError(f"_target_={target} cannot be imported: {error}.") from error


def build(node: Any, key: str = "", offered: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The objects that a configuration describes. Mappings with `_target_` (with `_partial_: true` a functools.partial), lists and plain
    mappings are built recursively; anything else, such as an object that is built already, is returned as it is.

    `given` are further arguments of the outermost target. Of `offered` it is passed those that its signature names and the configuration
    leaves out or sets to null.

    Raises ValueError for a target that is not given or cannot be imported, an unknown or missing setting, or a value of the wrong type or
    outside of its range (see `diffusion.support.ranges`)."""
    if isinstance(node, list):
        return [build(value, f"{key}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    settings = {k: build(v, f"{key}.{k}".lstrip(".")) for k, v in node.items() if k not in WORDS}
    if "_target_" not in node:
        return settings
    if node["_target_"] == "???":  # OmegaConf's mark of what is still to be given
        name = key.rpartition(".")[2]
        raise ValueError(f"{name} is to be a class of yours, and none is named: add {key}._target_=package.Class.")
    target = locate(node["_target_"])
    settings |= {k: v for k, v in wanted(target, offered or {}).items() if settings.get(k) is None}
    return construct(target, settings, key, partly=bool(node.get("_partial_")), given=given)


def construct(target: Callable, settings: Mapping[str, Any], key: str, *, partly: bool = False, given: Mapping[str, Any] = {}) -> Any:
    """What `target` makes of these settings, which a configuration has under `key`, and of what is `given`; with `partly` a
    functools.partial of it. Raises ValueError as `build` does."""
    _check_arguments(target, settings, given, key, complete=not partly)
    return partial(target, **settings, **given) if partly else target(**settings, **given)


def review(node: Any, key: str = "") -> Any:
    """The configuration with a stand-in for each object, of which none is made: every setting of every class that it names is checked.

    Raises ValueError as `build` does; what is missing may still be given."""
    if isinstance(node, list):
        return [review(value, f"{key}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    settings = {k: review(v, f"{key}.{k}".lstrip(".")) for k, v in node.items() if k not in WORDS}
    if node.get("_target_", "???") == "???":
        return settings
    _check_arguments(locate(node["_target_"]), settings, {}, key, complete=False)
    return object()


def wanted(target: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
    """What of `offered` a class or a function has an argument for; an argument that a functools.partial has set is no longer asked."""
    if not offered:
        return {}
    bound = target.keywords if isinstance(target, partial) else {}
    return {name: offered[name] for name in inspect.signature(target).parameters if name in offered and name not in bound}


def asks_for(node: Mapping[str, Any], name: str) -> bool:
    """Whether what a configuration builds has an argument of this name."""
    target = node.get("_target_", "???")
    return target != "???" and name in inspect.signature(locate(target)).parameters


def build_stages(node: Mapping[str, Any] | None, key: str = "", offered: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The objects of a mapping of stages, by name, in order; a stage that is null is left out. One with `_optional_: true` that cannot be
    had (a UserError) is left out too, and the log says why.

    Raises ValueError for a stage that says nothing of what it builds, and as `build` does."""
    built = {}
    for name, stage in (node or {}).items():
        if stage is None:
            continue
        if isinstance(stage, (*SCALARS, list)) or (isinstance(stage, dict) and "_target_" not in stage):
            raise ValueError(f"{key}.{name} is not one of {key}'s stages: nothing says what it builds.")
        try:
            built[name] = build(stage, f"{key}.{name}", offered)
        except UserError as error:
            if not stage.get("_optional_"):
                raise
            log.warning("%s.%s is left out: %s", key, name, error)
    return built


def spread(stages: dict[str, Any], key: str, said: Collection[str] = (), alike: Collection[str] = ()) -> dict[str, Any]:
    """The mapping of stages with its short forms, values beside the stages, moved into the stages that have such a setting, at any depth:
    {scale: 2, cfg: {scale: 1}} -> {cfg: {scale: 2}}. A setting whose own dotted key is in `said` stays as it is.

    A short form may set several stages at once if the objects that have the setting are of one class, or if the setting is one of `alike`.
    A word given for an object names another class of that object's module, or any class by its dotted path. Raises UserError where no stage
    has the setting, or where it is not clear which is meant."""
    shorts = {k: v for k, v in stages.items() if not isinstance(v, dict)}
    stages = {k: deepcopy(v) for k, v in stages.items() if isinstance(v, dict)}
    for short, value in sorted(shorts.items(), key=lambda item: item[0] not in alike):
        places = [place for name, stage in stages.items() for place in _places(stage, short, f"{key}.{name}")]
        if not places and value is None:  # a stage that is left out
            continue
        if not places:
            has = [f"{key}.{path}" for name, stage in stages.items() for path in _settings(stage, name)]
            hint = did_you_mean(short, {path.rpartition(".")[2] for path in has}, f"{key}.")
            there = f"{', '.join(stages) or 'none'}{', with ' if has else ''}{', '.join(has)}{hint}"
            raise UserError(f"{key}.{short} is a setting of none of {key}'s stages, which are {there}.")
        if short not in alike and len({node.get("_target_") for _, node in places}) > 1:
            raise UserError(f"{key}.{short} could be {' or '.join(f'{path}.{short}' for path, _ in places)}; say which.")
        for path, node in places:
            if f"{path}.{short}" not in said:
                node[short] = _renamed(node[short], value)
    return stages


def _renamed(node: Any, value: Any) -> Any:
    """The value; where it is a word given for an object, the object's node with the class that the word names."""
    if not isinstance(node, dict) or "_target_" not in node:
        return value
    if not isinstance(value, str):
        raise UserError(f"{value} is not the name of a class, as {node['_target_']} is one.")
    return node | {"_target_": value if "." in value else f"{node['_target_'].rpartition('.')[0]}.{value}"}


def ways(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ways to sample that a configuration names: `main`, its own sampler, grid and guidance, and its `samplers`, each of which holds
    only its differences from `main`. Raises UserError for what is no difference."""
    main = {group: config[group] for group in ("sampler", "grid", "guidance")}
    found = {"main": main}
    others = config.get("samplers", {})
    if not isinstance(others, Mapping):
        raise UserError(f"samplers={others} names no ways to sample: say +samplers.NAME.grid.steps=10, or another setting of one.")
    for name, way in others.items():
        for group, value in way.items() if isinstance(way, Mapping) else [("", way)]:
            if group not in main or not isinstance(value, Mapping):
                said = f"samplers.{name}.{group}".rstrip(".")
                raise UserError(f"{said}={value} is not a setting of a way to sample: say samplers.{name}.grid.steps=10, or another group.")
        found[name] = changed(main, way)
    return found


def changed(own: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what was typed put over it, setting by setting; an object of another class is replaced as a whole."""
    result = deepcopy(dict(own))
    for key, value in typed.items():
        before = result.get(key)
        result[key] = deepcopy(value)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            another = value.get("_target_", before.get("_target_")) != before.get("_target_")
            result[key] = result[key] if another else changed(before, value)
    return result


def _settings(node: Mapping[str, Any], path: str) -> list[str]:
    """The dotted paths of a stage's settings, at any depth."""
    inner = {f"{path}.{name}": value for name, value in node.items() if name not in WORDS}
    return [key for name, value in inner.items() for key in (_settings(value, name) if isinstance(value, dict) else [name])]


def _places(node: dict[str, Any], setting: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """The mappings at any depth of a stage that have a setting of this name, each with its dotted path."""
    found = [(path, node)] if setting in node else []
    return found + [place for k, v in node.items() if isinstance(v, dict) for place in _places(v, setting, f"{path}.{k}")]


def _check_arguments(target: Callable, settings: Mapping[str, Any], given: Mapping[str, Any], key: str, complete: bool) -> None:
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise ValueError(f"{key}._target_ is {target.__name__}, which has no {' and no '.join(missing)}.".lstrip("."))
    signature = inspect.signature(target)
    name, names = getattr(target, "__name__", str(target)), signature.parameters
    anything, kinds = any(p.kind is p.VAR_KEYWORD for p in names.values()), annotations(target, names)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key}={settings} is not a mapping of settings, which are {', '.join(names)}.")
    for setting, value in settings.items():
        if setting in given:
            raise ValueError(f"{key}.{setting} is given to {name} by the command itself; leave it out.".lstrip("."))
        if setting not in names and not anything:
            hint = did_you_mean(setting, names, f"{key}.".lstrip("."))
            raise ValueError(f"{key}.{setting} is not a setting of {name}, which has {', '.join(names) or 'none'}{hint}.".lstrip("."))
        if setting in names and (wrong := refused(value, kinds[setting])):
            raise ValueError(f"{key}.{setting}{wrong}.".lstrip("."))
    empty = inspect.Parameter.empty
    missing = [n for n, p in names.items() if p.default is empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [n for n in missing if n not in settings and n not in given]
    if complete and missing:
        raise ValueError(f"{name} needs {' and '.join(f'{key}.{n}'.lstrip('.') for n in missing)}.")
