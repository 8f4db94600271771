"""A training with the curve of its distance, its pictures, its images a second and the machine's utilisation."""

import json
import shutil
import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.check import Check, Overrun, Result
from benchmarks.gpu_check.report import table

RUN = "gpu-check"
WARM = 2  # lines of images a second that are left out: compilation, and the choice of kernels
COMPUTED_IN = {"32-true": ("tf32", "float32"), "bf16-mixed": ("bf16",), "16-mixed": ("bf16",)}  # which rate, the first that there is


def said(log: Path) -> Any:
    """The JSON that a command said last."""
    return json.loads(log.read_text().splitlines()[-1])


def numbers(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, with their passports."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def distances(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were measured in a training, each with its `value` and the `minutes` trained until then, by however many processes."""
    found, trained, before = [], 0.0, None
    for line in lines:
        if before and line.get("since") not in (None, before["since"]):  # another process has resumed it
            trained += before["time"] - before["since"]
        before = line if "since" in line else before
        if line.get("metric") in line and "cell" not in line:
            found.append({**line, "value": line[line["metric"]], "minutes": (trained + line["time"] - line["since"]) / 60})
    return found


def minutes_left(words: list[str], lines: list[dict[str, Any]]) -> list[str]:
    """What a training of so many minutes has left, where its words say how many: a resumed one would be given all of them again."""
    ends = {line["since"]: line["time"] for line in lines if "since" in line}
    trained = sum(end - since for since, end in ends.items()) / 60
    return [f"minutes={max(0.05, float(word.partition('=')[2]) - trained):.2f}" for word in words if word.startswith("minutes=")]


@dataclass(frozen=True)
class Training:
    """`train.py`, resumed where it was stopped."""

    name: str = "train"
    title: str = "training"

    def folder(self, check: Check) -> Path:
        return check.work / "runs" / RUN

    def metrics(self, check: Check) -> Path:
        return self.folder(check) / "metrics.jsonl"

    def run(self, check: Check) -> str:
        rates = check.stage("rates", lambda: said(check.ran("rates", "-m", "benchmarks.gpu_check.machine", check.device, "--rates")))
        try:
            check.stage("training", lambda: self.trained(check))
            check.stage("FLOPs", lambda: self.counted(check))
        finally:
            self.draw(check)
        found = self.facts(check)
        products = ", ".join(f"{rate} TFLOP/s in {kind}" for kind, rate in rates["rates"].items())
        return f"{found.get('images a second', 'no number of')} images a second; matrix products: {products}"

    def trained(self, check: Check) -> Result:
        folder, resumed = self.folder(check), (self.folder(check) / "checkpoints" / "last.ckpt").exists()
        places = [f"paths.runs={check.work / 'runs'}", f"paths.cache={check.cache}"]
        words = check.words(*check.size.training, *check.size.distance)
        goes_on = [f"resume={folder}", *minutes_left(words, numbers(self.metrics(check)))]
        line = goes_on if resumed else [f"name={RUN}", "logger=none", *words, f"trainer.accelerator={check.device}", *places]
        seen = -1

        def each() -> None:
            nonlocal seen
            if (count := len(distances(numbers(folder / "metrics.jsonl")))) != seen:
                seen = count
                check.tell()

        check.ran("training", "train.py", *line, each=each, spare=check.margin)
        return {}

    def counted(self, check: Check) -> Result:
        return said(check.ran("FLOPs", "-m", "benchmarks.gpu_check.counted", str(self.folder(check))))

    def draw(self, check: Check) -> None:
        """The curve and the last pictures, beside the report."""
        if distances(numbers(self.metrics(check))):
            with suppress(Overrun):  # the next call draws it
                check.code("curve", "-m", "benchmarks.gpu_check.curve", str(self.metrics(check)), str(check.out / "curve.png"))
        if pictures := sorted((self.folder(check) / "samples").glob("main-step=*.png")):
            shutil.copyfile(pictures[-1], check.out / "samples.png")

    def facts(self, check: Check) -> dict[str, object]:
        """What is known so far, by name."""
        lines, stages = numbers(self.metrics(check)), check.state.part(self.name)["stages"]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line][WARM:]
        found: dict[str, object] = {}
        if speeds:
            found["images a second"] = f"{(speed := statistics.median(speeds)):.0f}"
            found["their range"] = f"{min(speeds):.0f} to {max(speeds):.0f}"
        if counted := stages.get("FLOPs"):
            found |= {"parameters": f"{counted['parameters'] / 1e6:.1f} M", "FLOPs of an image's step": f"{counted['step'] / 1e9:.3g} G"}
        if speeds and counted and (rates := stages.get("rates", {}).get("rates")):
            kind = next(kind for kind in COMPUTED_IN[counted["precision"]] if kind in rates)
            found["matrix products"] = f"{rates[kind]} TFLOP/s in {kind}, measured just before"
            found["utilisation (MFU)"] = f"{100 * speed * counted['step'] / 1e12 / rates[kind]:.1f} %"
        evaluated = [line["evaluation_seconds"] for line in lines if "evaluation_seconds" in line]
        return found | ({"seconds of evaluation": f"{evaluated[-1]:.1f}"} if evaluated else {})

    def lines(self, check: Check) -> list[str]:
        measured = distances(numbers(self.metrics(check)))
        lines = table(["", ""], [[name, value] for name, value in self.facts(check).items()])
        head = ["step", "minutes", "distance", "value"]
        rows = [[m["step"], f"{m['minutes']:.1f}", m["metric"], f"{m['value']:.4g}"] for m in measured]
        lines += ["", *table(head, rows)]
        pictures = [f"![{name}]({name}.png)" for name in ("curve", "samples") if (check.out / f"{name}.png").exists()]
        return [*lines, "", " ".join(pictures), "", f"`{' '.join(check.words(*check.size.training, *check.size.distance))}`"]

    def files(self, check: Check) -> list[Path]:
        run = self.folder(check)
        pictures = sorted((run / "samples").glob("*.png"))
        return [self.metrics(check), run / "config.yaml", *pictures, *(check.work / "logs").glob("train-*.log")]
