"""What --help says of a command: its file of conf/, which is written to be read, and the choices of each of its groups.

Hydra's own help takes above a second, since it copies its configuration for each group."""

import re
from itertools import takewhile
from textwrap import fill

from diffusion.mistyped import CONF

INNER = ("callbacks", "paths")  # groups of one choice


def manual(command: str) -> str:
    """The help of conf/COMMAND.yaml: what its first comment says, the groups of its defaults with their choices, and its own keys."""
    lines = (CONF / f"{command}.yaml").read_text().splitlines()
    said = [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    groups = sorted({found[1] for line in lines if (found := re.match(r"  - (\w+): ", line))} - {*INNER})
    keys = [line for line in lines if re.match(r"\w", line) and not line.startswith(("defaults:", "hydra:"))]
    return "\n".join(
        [
            *said,
            "",
            "GROUP=CHOICE",
            *map(of_group, groups),
            "",
            "KEY=VALUE, beside the settings of what is chosen, which may bring other values than these",
            *keys,
        ]
    )


def of_group(group: str) -> str:
    """A group and its choices, in lines of a terminal."""
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return fill(f"{group}: {', '.join(choices)}", 120, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
