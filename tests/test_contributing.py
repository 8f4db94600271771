"""CONTRIBUTING.md's recipes as they are printed: a class from outside, its word in a folder of its own; trained and sampled."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from documents import ROOT, blocks, commands, configured, program

from diffusion.checkpoint import load
from diffusion.config import TrainSchema
from diffusion.support.build import ways
from diffusion.support.errors import UserError
from diffusion.training.run import train

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT, re.M | re.S))
DATA = ["dataset=synthetic", "dataset.image_size=8", "dataset.channels=1", "dataset.num_classes=4"]
SMALL = [
    "steps=2",
    "batch_size=8",
    "log_every=1",
    "eval_every=2",
    "checkpoint_every=2",
    "grid.steps=3",
    "callbacks.samples.columns=2",
    "trainer.accelerator=cpu",
]


def test_there_is_a_recipe_for_each():
    words = ["schedule", "sampler", "objective", "guidance", "network", "codec", "Conditions", "data set", "metric"]
    assert [re.sub("^An? ", "", name) for name in RECIPES] == words


@pytest.fixture(params=RECIPES)
def recipe(request, tmp_path: Path, monkeypatch) -> tuple[str, str, list[str]]:
    """(group, the class's path, the words typed) of a recipe whose module and file have been written."""
    text = RECIPES[request.param]
    (code,), (word,), (command,) = blocks(text, "python"), blocks(text, "yaml"), commands(text)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    path = tmp_path / "conf" / re.search(r"^# (\w+/\w+\.yaml)$", word, re.M)[1]
    path.parent.mkdir(parents=True)
    path.write_text(word)
    (target,) = re.findall(r"_target_: (mine\.\w+)", word)
    return path.parent.name, target, program(command)[2]


def small(typed: list[str], tmp_path: Path) -> list[str]:
    """The words of a recipe, with others that make it a run of seconds."""
    groups = {word.partition("=")[0] for word in typed}
    data = [] if "dataset" in groups else DATA
    network = [] if "network" in groups else ["network.channels=8"]
    found = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path}"]
    return [*data, *typed, *network, *SMALL, *found]


def test_a_recipe_trains_and_samples(recipe, tmp_path):
    group, target, typed = recipe
    config = configured("train", TrainSchema, small(typed, tmp_path))
    numbers = train(config, tmp_path / "run", trust=["mine"])
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert f"'_target_': '{target}'" in str(kept[group])
    model = load(tmp_path / "run", trust=["mine"])
    images = model.recipe(**ways(model.config)["main"])(range(2), model.conditions.ask(torch.arange(2))).images
    assert images.shape == (2, 8, 8, 1) and images.dtype == torch.uint8
    assert all(torch.tensor(value).isfinite() for value in numbers.values())
    if group == "schedule":
        schedule, t = model.denoiser.schedule, torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        assert torch.allclose(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    if group == "metric":
        assert numbers["brightness@200"] >= 0
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        assert next(line["passport"]["extractor"] for line in lines if "passport" in line) == {"name": "level"}
    elif group != "dataset":  # which is no part of a model
        with pytest.raises(UserError, match="mine"):
            load(tmp_path / "run")


def test_the_same_without_a_file(recipe, tmp_path):
    """`GROUP=custom` and the class's path, in place of the file."""
    group, target, _ = recipe
    place = f"{group}.custom" if group in ("guidance", "metric") else group
    said = [f"{group}=custom", f"{place}._target_={target}"]
    config = configured("train", TrainSchema, ["parameterization=v", "objective=simple", *said])
    assert f"'_target_': '{target}'" in str(config[group])


@pytest.mark.parametrize("name", RECIPES)
def test_the_code_is_as_tidy_as_ours(name):
    ruff = [sys.executable, "-m", "ruff"]
    (code,) = blocks(RECIPES[name], "python")
    for tool in (["check"], ["format", "--check"]):
        result = subprocess.run([*ruff, *tool, "--stdin-filename", "mine.py", "-"], input=code, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_the_commands_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {words[1] for words in commands(TEXT) if words[0] == "make"} == targets - {"help", "sample", "clean"}
