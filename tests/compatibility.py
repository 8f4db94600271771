"""docs/compatibility.md, from the code: `python tests/compatibility.py` writes it, and a test compares."""

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from diffusion.support.build import build, locate  # noqa: E402
from diffusion.training.fitting import misfits  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
TOP = """# What goes with what

Written by `tests/compatibility.py` from the classes themselves. Everything that is not named here goes with everything: each grid with each
schedule (of at most its number of time steps), each sampler with each grid, each guidance with each sampler, but for
`guidance=classifier_mean`, which is of `sampler=ddpm` alone. What does not fit is refused before the training begins, all of it in one
sentence, with words that do.
"""
MEAN = "no finite mean"  # the second table's
ASIDE = ("custom", "cross_entropy")  # a class that is not named, and the objective of another task


def words(group: str) -> dict[str, dict]:
    """Each word of a group of conf/ with what it says."""
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text()) for file in files if file.stem not in ASIDE}


def schedules() -> dict[str, object]:
    """By word; those that can end in pure noise also with that switched on."""
    found = {}
    for word, node in words("schedule").items():
        found[word] = build(node)
        if "zero_terminal_snr" in node:
            found[f"{word} schedule.zero_terminal_snr=true"] = build(node | {"zero_terminal_snr": True})
    return found


def choices() -> dict[str, dict[str, object]]:
    """The objects of the other three groups by word; of times the classes, since one is not made without time steps."""
    made = {group: {word: build(node) for word, node in words(group).items()} for group in ("parameterization", "objective")}
    return made | {"times": {word: locate(node["_target_"]) for word, node in words("times").items()}}


def misfitting() -> dict[str, dict[str, list[str]]]:
    """For each schedule and group the words that do not go with it, the other two groups being such as go with everything."""
    free = {"parameterization": "v", "objective": "simple", "times": "uniform"}
    given, found = choices(), {}
    for name, schedule in schedules().items():
        found[name] = {}
        for group, objects in given.items():
            rest = {other: given[other][word] for other, word in free.items()}
            tried = {word: misfits(schedule, *(rest | {group: thing}).values()) for word, thing in objects.items()}
            found[name][group] = [word for word, wrong in tried.items() if any(MEAN not in reason for reason in wrong)]
    return found


def endless() -> list[tuple[str, str, list[str]]]:
    """(parameterization, objective, the schedules in continuous time on which their loss has no finite mean over even times)."""
    given, found = choices(), []
    for read in given["parameterization"]:
        for word, objective in given["objective"].items():
            on = [
                name
                for name, schedule in schedules().items()
                if any(MEAN in wrong for wrong in misfits(schedule, given["parameterization"][read], objective, given["times"]["uniform"]))
            ]
            if on:
                found.append((read, word, on))
    return found


def coded(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def page() -> str:
    """The whole document."""
    facts = schedules()
    rows = [
        [
            f"`schedule={name}`",
            "continuous" if facts[name].num_timesteps is None else "in steps",
            "0" if facts[name].reaches_noise else "above 0",
            *(coded(groups[group]) for group in ("parameterization", "objective", "times")),
        ]
        for name, groups in misfitting().items()
    ]
    first = table(["schedule", "time", "alpha at t = 1", "not with parameterization", "not with objective", "not with times"], rows)
    second = table(["parameterization", "objective", "not on schedule"], [[f"`{r}`", f"`{o}`", coded(on)] for r, o, on in endless()])
    return (
        f"{TOP}\n## With the schedule\n\n{first}\n## Losses without a finite mean\n\n"
        "In continuous time, with t drawn evenly (`times=uniform`, `stratified` or `antithetic`), the loss of these pairs grows as 1/t or\n"
        "faster towards t = 0, so that its mean is infinite, and a few samples rule each step.\n\n" + second
    )


if __name__ == "__main__":
    PAGE.write_text(page())
