"""What older versions named otherwise, so that today's code samples, measures and resumes the runs that they made.

`brought_up` takes the configuration of a run, resolved (config.yaml) or not (source.yaml), and returns it in today's names.
"""

import re
from collections.abc import Mapping
from typing import Any

from diffusion.support.errors import UserError

# Version 0.1 (commit 51fd24b) -> now: modules and names of `_target_`s.
TARGETS = {
    "diffusion.codec.": "diffusion.codecs.",
    "diffusion.callbacks.": "diffusion.training.callbacks.",
    "diffusion.ema.": "diffusion.training.ema.",
    "diffusion.posthoc.": "diffusion.training.power_ema.",
    "diffusion.loggers.": "diffusion.training.loggers.",
    "diffusion.lr_schedules.": "diffusion.training.lr_schedules.",
}
# Settings that had another name.
SETTINGS = {"diffusion.checkpoint.denoiser": {"path": "ckpt"}, "diffusion.checkpoint.classifier": {"path": "ckpt"}}
# Settings that networks and times are now given when they are built, and that configurations used to repeat.
TOLD = {
    "network": ("in_channels", "out_channels", "image_size", "num_classes"),
    "times": ("num_timesteps",),
}
TRAINED_BY = {"_target_": "diffusion.training.module.DiffusionModule"}  # of runs from before there was another
FROM_NOTHING = {"ckpt": None, "averaged": True}  # of runs from before they could begin with another's weights


def brought_up(config: Any, where: str = "the configuration") -> dict[str, Any]:
    """The configuration of a run of any version in today's names, as a new mapping.

    Raises UserError for what is not the configuration of a run; `where` is its file, for the message."""
    try:
        return _brought_up(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is not the configuration of a run ({type(error).__name__}: {error}).") from error


def _brought_up(before: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"training": TRAINED_BY, "init": FROM_NOTHING, **{key: renamed(value) for key, value in before.items()}}
    if isinstance(config.get("compile"), bool):
        config["compile"] = "network" if config["compile"] else "off"
    if "codec" in config and "task" in config:
        return config
    dataset, task = config["dataset"], config["task"]
    of_unet = isinstance(task["denoiser"], dict) and "unet" in (task["denoiser"]["network"] or ())
    if of_unet:
        config["objective"], config["p_uncond"] = task["objective"], task["p_uncond"]
    config["task"] = {"_target_": "diffusion.classifier.of_unet" if of_unet else "diffusion.denoiser.Denoiser"}
    size, channels = dataset["image_size"], dataset["channels"]
    config["codec"] = {"_target_": "diffusion.codecs.Pixels", "data_shape": [size, size, channels]}
    config["conditions"] = {"_target_": "diffusion.conditions.Classes", "num_classes": dataset["num_classes"]}
    config |= {group: without(config[group], *told) for group, told in TOLD.items()}
    config |= {group: in_stages(config[group]) for group in ("metric", "guidance", "logger") if group in config}
    config["guidance"] = {name: without(stage, "grid") for name, stage in config["guidance"].items()}
    config["samplers"] = {
        name: way | ({"guidance": in_stages(way["guidance"])} if "guidance" in way else {})
        for name, way in config["samplers"].items()
        if name != "main"
    }
    if "milestones" in config["callbacks"]:
        typed = "$" in str(config["callbacks"]["milestones"]["every"])
        config["callbacks"]["milestones"]["n"] = "${milestone_n}" if typed else config["milestone_n"]
    return without(config, "denoiser")


def in_stages(group: Mapping[str, Any]) -> dict[str, Any]:
    """The group with the settings that stood beside its stages moved into the stages."""
    shorts = {key: value for key, value in group.items() if not isinstance(value, dict)}
    optional = {"_optional_": True} if shorts.get("required") is False else {}

    def said(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: said(inner) for key, inner in value.items()}
        refers = re.fullmatch(r"\$\{\.+(\w+)\}", value) if isinstance(value, str) else None
        return shorts[refers[1]] if refers and refers[1] in shorts else value

    return {name: said(stage) | optional for name, stage in group.items() if isinstance(stage, dict)}


def renamed(node: Any) -> Any:
    """The node with today's names of classes and settings."""
    if isinstance(node, list):
        return [renamed(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get("_target_")
    settings = SETTINGS.get(target, {}) if isinstance(target, str) else {}
    result = {settings.get(key, key): renamed(value) for key, value in node.items()}
    if isinstance(target, str):
        old = next((old for old in TARGETS if target.startswith(old)), None)
        result["_target_"] = TARGETS[old] + target.removeprefix(old) if old else target
    return result


def without(node: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The mapping without some of its keys."""
    return {key: value for key, value in node.items() if key not in names}
