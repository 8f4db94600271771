"""The results as a file and as a table, and what they were measured on."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffusion.passport import code_version
from diffusion.support.files import atomic

from .harness import Result

PEERS = ("diffusers", "accelerate", "denoising-diffusion-pytorch", "k-diffusion", "torch-fidelity", "transformers")


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on: processor and GPU, threads, versions."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for package in PEERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    facts = {"device": device, "gpu": gpu, "cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    before = os.getloadavg()[0]
    return facts | {"load": before, "python": platform.python_version(), "torch": torch.__version__, "code": code_version(), **versions}


def processor() -> str:
    """Its name, where Linux says it."""
    file = Path("/proc/cpuinfo")
    said = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in said if line.startswith("model name")), platform.processor())


class Report:
    """The file of results, written anew whenever there is more to say, whole or not at all."""

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self.file, self.facts, self.rows = file, dict(facts), {}

    def keep(self, result: Result) -> None:
        """Write the file with this row in it, too."""
        self.rows[result.name] = asdict(result)
        with atomic(self.file) as temporary:
            temporary.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n")


HEAD = ["| row | ratio | median | range | goal | |", "|---|---|---|---|---|---|"]
WORDS = {True: "yes", False: "**no**", None: ""}


def lines(result: Result) -> list[str]:
    """A row's lines of the table of ratios, and of who was not there."""
    made = [line(result.name, ratio) for ratio in result.ratios]
    made += [f"| {result.name} | without {side} | | | | {cell(reason)} |" for side, reason in result.absent.items()]
    return made + ([f"| {result.name} | | | | | {cell(result.died)} |"] if result.died else [])


def line(row: str, ratio: Mapping[str, Any]) -> str:
    """One ratio's."""
    low, middle, high = (number(ratio[key]) for key in ("low", "median", "high"))
    return f"| {row} | {ratio['name']} | {middle} | {low} to {high} | {ratio['goal'] or ''} | {WORDS[ratio['met']]} |"


def sides(result: Result) -> list[str]:
    """The raw medians of a row, a line for each side with what it says of itself."""
    made = [f"{result.name}: {result.what} ({result.seconds:.0f} s)"]
    for side, rounds in result.rounds.items():
        facts = ", ".join(f"{key} {number(value)}" for key, value in result.facts.get(side, {}).items())
        made.append(f"  {side:34s} {number(statistics.median(rounds)):>9s} {result.unit}   {facts}")
    made += [f"  {side:34s} not measured: {reason}" for side, reason in result.absent.items()]
    return made + ([f"  died: {result.died}"] if result.died else [])


def table(results: Sequence[Result]) -> list[str]:
    """The whole table as Markdown."""
    return [*HEAD, *(line for result in results for line in lines(result))]


def number(value: Any) -> str:
    """Three digits of a number, and anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    """A sentence that stays in its cell: one line, the last of several."""
    return " ".join(text.replace("|", "/").split())[-300:]
