"""A distance end to end, by two commands that must agree, and in two halves of which a third does the same."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.check import Check, Failed, Result
from benchmarks.gpu_check.parts.training import RUN, distances, numbers
from benchmarks.gpu_check.report import table

SEED = 1_000_000  # of the first image that a metric draws
AGREE = {"cpu": 1e-6, "cuda": 5e-3}  # relatively: a training lets cuDNN choose its kernels, which moves pixels by a level
NAME = "gpu-check-distance"
STEPS = 2  # of the training whose last evaluation this is, too small to move its weights
BRIEF = (f"steps={STEPS}", "eval_every=1000000", "milestone_every=null", "warmup=1", "optimizer.lr=0.0000001")


@dataclass(frozen=True)
class Distances:
    """Of n images: the last evaluation of a training that begins with the weights of the part before, `diffusion.evaluate` of its run, and
    `sample.py` followed by `diffusion.evaluate images=`. Each is a process, so its seconds have those of starting it."""

    name: str = "distance"
    title: str = "distance"

    def run(self, check: Check) -> str:
        size, run = check.size, check.work / "runs" / NAME
        words = check.words(*size.distance)
        metric = [word for word in words if word.startswith("metric")] + [f"metric.n={size.n}"]
        cache = f"paths.cache={check.cache}"
        data = [f"dataset={size.reference}", *(word for word in words if word.startswith("dataset."))]
        device = f"device={check.device}"
        evaluate = ["-m", "diffusion.evaluate", *metric, device, cache, "keep_features=0"]
        check.stage("reference", lambda: self.timed(check, "reference", *evaluate, *data, f"out={check.work / 'reference.npz'}"))
        check.stage("training", lambda: self.trained(check, run, metric, cache))
        check.stage("evaluate", lambda: self.timed(check, "evaluate", *evaluate, f"ckpt={run}") | self.measured(run))
        images = check.work / "images.npz"
        sample = ["sample.py", f"ckpt={run}", f"n={size.n}", f"seed={SEED}", device, f"out={images}"]
        check.stage("sampling", lambda: self.timed(check, "sampling", *sample))
        out = check.work / "images.jsonl"
        halves = [*evaluate, *data, f"images={images}", f"out={out}"]
        check.stage("features", lambda: self.timed(check, "features", *halves) | self.value(numbers(out)[-1]))
        return self.verdict(check)

    def verdict(self, check: Check) -> str:
        """What all three say. Raises Failed where they do not agree."""
        stages = check.state.part(self.name)["stages"]
        trained, evaluated, halves = (stages[name]["value"] for name in ("training", "evaluate", "features"))
        said = f"{trained:.6g} by the training, {evaluated:.6g} by diffusion.evaluate, {halves:.6g} of the images as a file"
        if max(abs(evaluated - trained), abs(halves - trained)) > AGREE[check.device] * abs(trained):
            raise Failed(f"they do not agree: {said}")
        return said

    def timed(self, check: Check, name: str, *line: str) -> Result:
        check.ran(name, *line)
        return {}

    def trained(self, check: Check, run: Path, metric: list[str], cache: str) -> Result:
        """A few steps, or the last evaluation of those that were made, and its number."""
        before = check.work / "runs" / RUN
        begun = [f"init.ckpt={before}"] if (before / "checkpoints" / "last.ckpt").exists() else []
        words = check.words(*check.size.training, *check.size.distance, *metric, *BRIEF)
        words = [word for word in words if not word.startswith("minutes=")]
        places = [f"name={NAME}", "logger=none", f"paths.runs={check.work / 'runs'}", cache, f"trainer.accelerator={check.device}"]
        line = [f"resume={run}"] if (run / "checkpoints" / "last.ckpt").exists() else [*words, *begun, *places]
        check.ran("training", "train.py", *line)
        lines = numbers(run / "metrics.jsonl")
        return self.value(distances(lines)[-1]) | {"evaluation": lines[-1]["evaluation_seconds"]}

    def measured(self, run: Path) -> Result:
        (*_, last) = (line for line in numbers(run / "metrics.jsonl") if "cell" in line)
        return self.value(last) | {"evaluation": last["seconds"]}

    def value(self, line: dict) -> Result:
        return {"metric": line["metric"], "value": line[line["metric"]], "nfe": line["passport"]["nfe"]}

    def lines(self, check: Check) -> list[str]:
        stages = check.state.part(self.name)["stages"]
        words = {
            "reference": "`diffusion.evaluate reference`: the data set's own features",
            "training": f"`train.py`: {STEPS} steps and the last evaluation",
            "evaluate": "`diffusion.evaluate ckpt=RUN`",
            "sampling": "`sample.py`: the same images, as a file",
            "features": "`diffusion.evaluate images=FILE`: their features",
        }
        rows = [
            [words[name], f"{found['seconds']:.1f}", f"{found.get('evaluation', 0):.1f}".replace("0.0", ""), found.get("value", "")]
            for name, found in stages.items()
        ]
        return table([f"{check.size.n} images", "seconds, with starting", "of it measuring", "distance"], rows)

    def files(self, check: Check) -> list[Path]:
        run = check.work / "runs" / NAME
        return [run / "metrics.jsonl", run / "config.yaml", check.work / "images.jsonl", *(check.work / "logs").glob("distance-*.log")]
