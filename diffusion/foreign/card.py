"""The card of a model that is given away: what it is, how it was trained, its numbers with their passports, and how it is loaded."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion.dashboard.columns import records
from diffusion.model import Model

GROUPS = ("dataset", "network", "schedule", "parameterization", "objective", "optimizer", "ema")
TRAINED = ("steps", "batch_size", "accumulate", "precision", "seed", "p_uncond")
FACTS = ("sampler", "guidance", "extractor", "reference", "nfe", "seeds", "precision", "code")
PLACE_KEYS = frozenset({"root", "cache", "ckpt", "folder"})  # settings that are places on this machine, which concern nobody else
HEAD = """---
library_name: diffusers
license: unknown
pipeline_tag: unconditional-image-generation
---

# {name}

{what} Its licence is unknown: whoever trained it, and whose pictures it was trained on, say what may be done with it.

```python
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("FOLDER")  # this folder, or OWNER/NAME
{call}
```
"""
CALL = "images = pipeline(batch_size=4, num_inference_steps={steps}).images"
CLASSES = """x = torch.randn(4, {channels}, {height}, {width})
pipeline.scheduler.set_timesteps({steps})
for t in pipeline.scheduler.timesteps:  # the pipeline's own call tells the network no class, and fails
    with torch.no_grad():
        out = pipeline.unet(x, t, class_labels=torch.tensor([0, 1, 2, 3]) % {classes}).sample
    x = pipeline.scheduler.step(out, t, x).prev_sample"""


def card_of(model: Model, pipeline: str, null_class: bool, about: Mapping[str, Any]) -> str:
    """The card of a model that is written as this `pipeline` of diffusers: Markdown, with the head that the hub reads."""
    classes = getattr(model.conditions, "num_classes", 0)
    channels, height, width = model.codec.shape
    size = {"channels": channels, "height": height, "width": width, "classes": classes, "steps": model.config["grid"].get("steps", 50)}
    what = f"A diffusion model of pictures of {height} x {width} pixels and {channels} channel{'s' * (channels > 1)}"
    what += f", told one of {classes} classes." if classes else "."
    call = CLASSES.format(**size) if classes else CALL.format(**size)
    name = str(about.get("name", "model"))
    parts = [HEAD.format(name=name, what=what, pipeline=pipeline, call=call)]
    if null_class:
        parts.append(f"Class {classes}, the last of its {classes + 1} rows, stands for no class, for classifier-free guidance.\n")
    parts += ["".join(f"* {note}\n" for note in about.get("notes", []))] * bool(about.get("notes"))
    parts += [weights_said(model, about), trained_by(model), sampled_by(model), numbers(model)]
    return "\n".join(part for part in parts if part)


def weights_said(model: Model, about: Mapping[str, Any]) -> str:
    """What the weights are."""
    said = {"run": about.get("name"), "step": model.step or None, "average": json.dumps(model.ema) if model.ema else None}
    said |= {"from": about.get("file"), "layout": about.get("layout"), "sha256": about.get("sha256"), "hash of the weights": model.weights}
    return "## The weights\n\n" + "".join(f"* {key}: {value}\n" for key, value in said.items() if value is not None)


def trained_by(model: Model) -> str:
    """How it was trained, in brief; nothing for a model of others, of which that is not known."""
    config = model.config
    if "steps" not in config:
        return ""
    rows = [f"| {group} | {one_line(config[group])} |\n" for group in GROUPS if config.get(group)]
    rows += [f"| {key} | {config[key]} |\n" for key in TRAINED if key in config]
    return "## Its training\n\n| | |\n|---|---|\n" + "".join(rows)


def sampled_by(model: Model) -> str:
    """How the run samples: not all of it may be in the folder."""
    ways = {key: model.config[key] for key in ("sampler", "grid")}
    stages = {f"guidance {name}": stage for name, stage in model.config["guidance"].items()}
    rows = [f"| {key} | {one_line(node)} |\n" for key, node in (ways | stages).items()]
    return "## Its sampling\n\n| | |\n|---|---|\n" + "".join(rows)


def one_line(node: Mapping[str, Any]) -> str:
    """A group's class and settings, without places on this machine."""
    plain = {key: f"({one_line(value)})" if isinstance(value, Mapping) else value for key, value in node.items() if key not in PLACE_KEYS}
    settings = {key: value for key, value in plain.items() if not key.startswith("_") and value is not None}
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return f"{name} {', '.join(f'{key}={value}' for key, value in settings.items())}".replace("|", "\\|").strip()


def numbers(model: Model) -> str:
    """The last of each number in its run's metrics.jsonl, by metric and passport; nothing where there are none."""
    last = {(record["passport"]["metric"], record["passport"]["id"]): (record, name) for record, name in last_numbers(model)}
    if not last:
        return ""
    rows, facts = [], []
    for (metric, number), (record, name) in last.items():
        passport = record["passport"]
        these = "yes" if passport.get("weights") == model.weights else "no"
        rows.append(f"| {metric} | {record[name]:.5g} | {record['step']} | {these} | {number} |\n")
        found = {key: passport[key] for key in FACTS if passport.get(key)}
        facts.append(f"* `{number}` {metric}: `{json.dumps(found, sort_keys=True)}`\n")
    head = "| metric | value | step | of these weights | passport |\n|---|---|---|---|---|\n"
    return "## Its numbers\n\n" + head + "".join(rows) + "\nNumbers compare where their passports are one.\n\n" + "".join(facts)


def last_numbers(model: Model) -> Iterator[tuple[dict, str]]:
    """The records of a run's numbers, in order, each with the key of its number."""
    if model.folder is None or not (model.folder / "metrics.jsonl").is_file():
        return
    for record in records(model.folder, []):
        passport = record.get("passport")
        name = passport.get("metric") if isinstance(passport, dict) else None
        if isinstance(name, str) and isinstance(record.get(name), int | float):
            yield record, name
