"""From a composed configuration to objects: `{_target_: package.Class, key: value}` becomes `package.Class(key=value)`.

The same rule as Hydra's `instantiate`, over plain data and with no need of Hydra, so that a checkpoint loads in a notebook; and its
errors are one sentence that names the key as it is typed on the command line.
"""

import inspect
import types
import typing
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

SCALARS = (bool, int, float, str)


def locate(target: str) -> Callable:
    """The class or function that a dotted path names. Raises ValueError with the path if there is none."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_={target} cannot be imported: {error}.") from error


def build(node: Any, key: str = "", **given: Any) -> Any:
    """Objects for a configuration: recursively for mappings with `_target_` (with `_partial_: true`, a functools.partial), lists and
    plain mappings; anything else as it is. `given` are further arguments of the outermost target.

    Raises ValueError for a target that is not given or cannot be imported, an unknown or missing setting, or a value of the wrong type."""
    if isinstance(node, list):
        return [build(value, f"{key}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    settings = {k: build(v, f"{key}.{k}".lstrip(".")) for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return settings
    if node["_target_"] == "???":  # OmegaConf's mark of what is still to be given
        name = key.rpartition(".")[2]
        raise ValueError(f"{name} is to be a class of yours, and none is named: add {name}._target_=package.Module.")
    target = locate(node["_target_"])
    _check(target, settings, given, key, complete=not node.get("_partial_"))
    return partial(target, **settings, **given) if node.get("_partial_") else target(**settings, **given)


def build_stages(node: dict | None, key: str = "") -> dict[str, Any]:
    """The objects among a mapping's values, by name; its plain values are settings that the others refer to."""
    return {k: build(v, f"{key}.{k}") for k, v in (node or {}).items() if isinstance(v, dict)}


def _check(target: Callable, settings: dict, given: dict, key: str, complete: bool) -> None:
    signature = inspect.signature(target)
    name, names = getattr(target, "__name__", str(target)), signature.parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in names.values())
    for setting, value in settings.items():
        if setting not in names and not anything:
            raise ValueError(f"{key}.{setting} is not a setting of {name}, which has {', '.join(names) or 'none'}.".lstrip("."))
        if setting in names and not _fits(value, names[setting].annotation):
            wanted = getattr(names[setting].annotation, "__name__", names[setting].annotation)
            raise ValueError(f"{key}.{setting}={value} should be of type {wanted}.".lstrip("."))
    empty = inspect.Parameter.empty
    missing = [n for n, p in names.items() if p.default is empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [n for n in missing if n not in settings and n not in given]
    if complete and missing:
        raise ValueError(f"{name} needs {' and '.join(f'{key}.{n}'.lstrip('.') for n in missing)}.")


def _fits(value: object, annotation: object) -> bool:
    """Whether a plain value is of a scalar annotation's type, or of one of a union's; other annotations are not judged."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_fits(value, choice) for choice in typing.get_args(annotation))
    if annotation is type(None):
        return value is None
    if annotation not in SCALARS:
        return True
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, int | float) if annotation is float else isinstance(value, annotation)
