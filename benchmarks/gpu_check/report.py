"""The report: Markdown of what there is so far, whole at any instant."""

import re
from typing import TYPE_CHECKING

from diffusion.support.files import atomic

if TYPE_CHECKING:
    from benchmarks.gpu_check.check import Check


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    """Lines of a table."""
    lines = [" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) for row in ([*head], *rows)]
    return [f"| {line} |" for line in (lines[0], " | ".join("---" for _ in head), *lines[1:])] if rows else []


def text(check: "Check") -> str:
    """All of it."""
    key, machine = check.state.key, check.state.content["machine"]
    begun = [["begun", f"{check.state.content['begun']}"]]
    what = [["code", key["code"]], ["size", f"{key['size']}, {check.minutes:g} minutes for each part"], *begun]
    lines = ["# What this machine does", "", *table(["", ""], [[name, value] for name, value in machine.items()] + what), ""]
    if check.size.name != "full":
        lines += ["Made small to try the check itself: its numbers say nothing of a GPU.", ""]
    if check.state.before:
        lines += [f"Begun anew: what was here was of {check.state.before}, and is in before.md.", ""]
    entries = [(part, check.state.part(part.name)) for part in check.parts]
    rows = [[part.title, entry["status"], f"{entry['seconds']:.0f}", entry["said"]] for part, entry in entries]
    lines += table(["part", "status", "seconds", ""], rows)
    for part, entry in entries:
        if entry["status"] != "to do":
            lines += ["", f"## {part.title[0].upper()}{part.title[1:]}", "", *part.lines(check)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def write(check: "Check") -> None:
    """report.md."""
    with atomic(check.out / "report.md") as temporary:
        temporary.write_text(text(check))
