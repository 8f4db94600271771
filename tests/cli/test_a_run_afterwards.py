"""A run sampled and measured afterwards is the run that was trained: its sampler, grid, guidance and precision, unless others are typed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, SMALL, command, succeeded
from composing import way
from inside import lines, measured, sampled, trained

from diffusion import grids, samplers
from diffusion.checkpoint import load
from diffusion.support.build import build
from diffusion.support.errors import UserError

WORDS = ["guidance.scale=2", "sampler=ddim", "grid.steps=4", "metric=fd_digits", "metric.n=50", "metric.groups=0", "parameterization=v"]
QUICK = ["lr_schedule=constant", "optimizer.lr=0.01"]  # so that four steps leave a network in which precision and guidance tell
FEW = ["metric.n=20", "metric.groups=0", "grid.steps=2"]
SHORT = ["steps=4", "eval_every=4", "checkpoint_every=4", "callbacks.distance.at_start=false", "callbacks.checkpoints.keep_every=4"]
PRECISIONS = ["32-true", "bf16-mixed"]
pytestmark = pytest.mark.xdist_group("afterwards")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {precision: trained(folder / precision, *WORDS, *SHORT, *QUICK, f"precision={precision}") for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_measured_afterwards_is_measured_in_training(runs, tmp_path, precision):
    """With nothing typed but the checkpoint: the number and its passport's id, exactly."""
    (seen,) = [line for line in lines(runs[precision] / "metrics.jsonl") if "passport" in line]
    again = measured(runs[precision], tmp_path / "out.jsonl")
    assert again["fd-digits@50"] == seen["fd-digits@50"]
    assert again["passport"] == seen["passport"] and again["passport"]["precision"] == precision
    assert again["passport"]["guidance"]["denoiser"]["scale"] == 2 and again["passport"]["sampler"]["grid"]["steps"] == 4


def test_precisions_are_told_apart(runs, tmp_path):
    first, second = (measured(runs["32-true"], tmp_path / "out.jsonl", *words) for words in ([], ["precision=bf16-mixed"]))
    assert first["passport"]["id"] != second["passport"]["id"] and first["fd-digits@50"] != second["fd-digits@50"]


@pytest.mark.parametrize(
    ("words", "sampler", "grid"),
    [
        ([], samplers.DDIM(), grids.Trailing(4)),
        (["grid.steps=2"], samplers.DDIM(), grids.Trailing(2)),
        (["sampler.eta=1"], samplers.DDIM(1), grids.Trailing(4)),
        (["sampler=heun", "grid.steps=3"], samplers.Heun(), grids.Karras(3, sigma_max=80.0)),
        (["sampler=heun", "grid=quadratic", "grid.steps=3"], samplers.Heun(), grids.Quadratic(3)),
        (["sampler=ddpm"], samplers.DDPM("auto"), grids.Trailing(4)),
    ],
    ids=str,
)
def test_what_is_typed_changes_the_run_s_own_way(runs, tmp_path, words, sampler, grid):
    run = runs["32-true"]
    model = load(run)
    said = way(model.config, *words)
    assert build(said["sampler"]) == sampler and build(said["grid"]) == grid and said["guidance"]["cfg"]["scale"] == 2
    recipe = model.recipe(sampler, grid, model.config["guidance"], batch_size=model.config["sample_batch_size"])
    made = sampled(run, tmp_path, "n=5", "seed=3", *words)
    cond = model.conditions.ask(torch.arange(5))
    assert (made["images"] == recipe(range(3, 8), cond).images.numpy()).all() and made["labels"].tolist() == [0, 1, 2, 3, 0]


def test_another_sampler_makes_other_images(runs, tmp_path):
    """What the test above compares is not blind."""
    images = [sampled(runs["32-true"], tmp_path, "n=5", *words)["images"] for words in ([], ["grid.steps=2"], ["guidance.scale=1"])]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_a_file_s_name_may_hold_an_equals_sign(runs, tmp_path):
    """And a real sample.py imports neither Lightning nor torchmetrics nor anything of training."""
    file = runs["32-true"] / "checkpoints/step=00000004.ckpt"
    words = ["sample.py", f"ckpt={file}", "n=2", f"out={tmp_path / 'a=b'}", "device=cpu"]
    script = f"""
import runpy, sys
sys.argv = {words!r}
runpy.run_path("sample.py", run_name="__main__")
heavy = ("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "diffusion.training")
print("loaded", [name for name in sys.modules if name.startswith(heavy)])
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert succeeded(result).splitlines()[-1] == "loaded []"
    assert np.load(tmp_path / "a=b/samples.npz")["images"].shape == (2, 8, 8, 1)


def test_each_call_has_a_folder_that_says_what_made_it(runs, tmp_path):
    run = runs["32-true"]
    first = sampled(run, None, "n=3")
    (folder,) = (path.parent for path in (run / "samples").glob("*/recipe.json"))
    assert folder.name.startswith("step4-ddim-4-n3-seed0-")
    record = json.loads(str(first["recipe"]))
    (passport,) = [line["passport"] for line in lines(run / "metrics.jsonl") if "passport" in line]
    for key in ("sampler", "nfe", "guidance", "ema", "weights", "step", "code", "precision", "device", "conditions"):
        assert record[key] == passport[key], key
    assert record["command"] is None and record["run"] == run.name  # no command is running here
    others = ("n=2", "sampler.eta=0.5", "classes=[1]", "averaged=false", "between=[1,2]", "precision=bf16-mixed")
    for word in others:
        sampled(run, None, *([] if word == "n=2" else ["n=3"]), word)
    again = sampled(run, None, "n=3", "sample_batch_size=1")
    assert np.array_equal(again["seeds"], first["seeds"])
    assert len(list((run / "samples").glob("*/recipe.json"))) == 1 + len(others)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds mine\.txt"):
        sampled(run, tmp_path, "n=3")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["train.py", "sample.py", "diffusion.evaluate"])
def test_help_answers_without_torch(name):
    run = f"runpy.run_path({name!r}, run_name='__main__')" if name.endswith(".py") else f"runpy.run_module({name!r}, run_name='__main__')"
    script = f"import runpy, sys\nsys.argv = [{name!r}, '--help']\ntry:\n    {run}\nfinally:\n    print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.stdout.splitlines()[-1] == "False", result.stderr[-2000:]


def test_a_model_that_computes_otherwise_is_measured_anew(runs, tmp_path):
    """The weights and their hash are the same, and what is said beside them is not."""
    run = shutil.copytree(runs["32-true"], tmp_path / "run")
    words = ["sampler=ddim", "grid.steps=3"]
    first, again = (measured(run, tmp_path / "out.jsonl", *words) for _ in range(2))
    assert first == again and len(lines(tmp_path / "out.jsonl")) == 1
    said = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(said.replace("parameterization.V\n", "parameterization.X0\n"))
    other = measured(run, tmp_path / "out.jsonl", *words)
    assert other["fd-digits@50"] != first["fd-digits@50"] and other["passport"]["weights"] == first["passport"]["weights"]
    (run / "config.yaml").write_text(said)
    measured(run, tmp_path / "out.jsonl", *words)
    assert len(lines(tmp_path / "out.jsonl")) == 2


def test_a_resumed_run_keeps_what_was_measured(tmp_path):
    """Beside what it records itself, from where it stood at its checkpoint; a line that was begun after it goes."""
    run, cache = tmp_path / "run", f"paths.cache={tmp_path / 'cache'}"
    succeeded(command("train.py", *SMALL, "metric=fd_digits", *FEW, f"paths.runs={tmp_path}", "name=run", "logger=none", cache))
    line = measured(run, run / "metrics.jsonl", "sampler=heun", "grid.steps=3", cache)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "loss/total": 1.0}\n')
    succeeded(command("train.py", f"resume={run}", "steps=8"))
    assert line in lines(run / "metrics.jsonl") and {"step": 7, "loss/total": 1.0} not in lines(run / "metrics.jsonl")


@pytest.mark.parametrize("words", [["network.channels=64"], ["optimizer.lr=-1"], ["batch_size=0"], ["trainer.devices=3"]], ids=" ".join)
def test_a_refused_resume_leaves_the_folder_as_it_was(runs, words):
    run = runs["32-true"]
    before = {path: path.read_bytes() if path.is_file() else None for path in run.rglob("*")}
    result = command("train.py", f"resume={run}", "steps=8", *words)
    said = {line for line in result.stderr.splitlines() if line.startswith("error: ")}  # the same by every process
    assert result.returncode == 1 and len(said) == 1 and "Traceback" not in result.stderr, result.stderr
    assert {path: path.read_bytes() if path.is_file() else None for path in run.rglob("*")} == before
