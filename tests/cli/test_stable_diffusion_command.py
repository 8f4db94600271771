"""`python sample.py ckpt=FOLDER prompt="..."` of a Stable Diffusion folder, as it is typed."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from commands import ROOT, command, succeeded
from documents import commands, program
from inside import measured, sampled
from PIL import Image

from diffusion.checkpoint import load
from diffusion.grids import Karras
from diffusion.guidance import ClassifierFree
from diffusion.samplers import EulerAncestral
from diffusion.support.errors import UserError

pytestmark = pytest.mark.xdist_group("foreign")
PROMPT, NEGATIVE = 'a cat, in [a] "hat" = $1', "blurry, {bad}"


@pytest.fixture
def folder(stable_diffusion, tmp_path):
    """A folder of a name of its own, which nothing is written to."""
    return shutil.copytree(stable_diffusion["two"], tmp_path / "models" / "tiny-2")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_command(folder, tmp_path):
    """Its pictures are those of the recipe that it names; they are beside the caller, and the folder is as it was."""
    before = files(folder)
    words = ["sampler=euler_a", "grid=karras", "grid.steps=4", "guidance.scale=5", "seed=3", "n=2", "device=cpu"]
    typed = (f"ckpt={folder}", f"prompt={PROMPT}", f"negative_prompt={NEGATIVE}", *words)
    said = succeeded(command(ROOT / "sample.py", *typed, cwd=tmp_path))
    (made,) = (tmp_path / "samples" / "tiny-2").iterdir()
    assert str(made) in said and files(folder) == before
    record = json.loads((made / "recipe.json").read_text())
    assert record["run"] == "tiny-2" and record["sampler"]["name"] == "EulerAncestral" and record["sampler"]["grid"]["name"] == "Karras"
    assert record["prompts"] == [PROMPT] and record["guidance"]["negative"] == NEGATIVE and record["guidance"]["scale"] == 5
    model = load(folder)
    assert record["weights"] == model.weights
    guided = {"cfg": partial(ClassifierFree, scale=5.0, negative=NEGATIVE)}
    recipe = model.recipe(EulerAncestral(), Karras(4), guided)
    expected = recipe([3, 4], recipe.conditions.parse([PROMPT] * 2)).images
    images = torch.from_numpy(np.load(made / "samples.npz")["images"])
    assert (images.int() - expected.int()).abs().max() <= 1
    assert (recipe([3, 4], recipe.conditions.parse(["another"] * 2)).images.int() - expected.int()).abs().max() > 1


def test_what_is_not_typed_is_the_folder_s_own(folder, tmp_path):
    assert len(sampled(folder, tmp_path / "out", "prompt=a cat", "grid.steps=3")["images"]) == 1
    record = json.loads((tmp_path / "out/recipe.json").read_text())
    assert record["sampler"] == {"name": "DDIM", "eta": 0.0, "grid": {"name": "Leading", "steps": 3, "offset": 1}}
    assert record["guidance"]["name"] == "ClassifierFree" and record["guidance"]["scale"] == 7.5
    assert record["conditions"]["encoder"]["name"] == "CLIP" and record["precision"] == "32-true"


def test_a_file_of_prompts_makes_an_image_of_each(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na hat\n")
    made = sampled(folder, tmp_path / "out", f"prompts={tmp_path / 'prompts.txt'}", "grid.steps=2")
    assert made["prompts"].tolist() == ["a cat", "a dog", "a hat"] and len(made["images"]) == 3


def test_edits_and_sizes(folder, tmp_path):
    levels = np.arange(20 * 24 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 24, 3)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray((np.arange(24) > 11).astype(np.uint8)[None].repeat(20, 0) * 255).save(tmp_path / "m.png")
    words = ("n=2", "grid.steps=4", "height=20", "width=24", f"edit.image={tmp_path / 'a.png'}")
    given = {}
    for name, more in {
        "a": ["edit=img2img", "prompt=a cat"],
        "b": ["edit=img2img", "prompt=a dog"],
        "c": ["edit=inpaint", f"edit.mask={tmp_path / 'm.png'}", "prompt=a cat"],
    }.items():
        given[name] = sampled(folder, tmp_path / name, *words, *more)["images"]
        assert given[name].shape == (2, 20, 24, 3)
    assert (given["a"] != given["b"]).any()
    assert (given["c"][0] != given["c"][1])[:, 12:].any()


def test_half_precision(folder, tmp_path):
    whole, half = (
        sampled(folder, tmp_path / name, "prompt=a cat", "n=1", "grid.steps=3", f"precision={name}") for name in ("32-true", "bf16-true")
    )
    assert json.loads(str(half["recipe"]))["precision"] == "bf16-true"
    assert 0 < np.abs(whole["images"].astype(int) - half["images"].astype(int)).max() < 40


def test_a_class_is_no_text(folder, tmp_path):
    with pytest.raises(UserError, match=r"classes=\[3\] is not a text, and this model is asked by texts: say prompt="):
        sampled(folder, tmp_path / "out", "classes=[3]", "n=1")


def test_a_prompt_is_missing(folder, tmp_path):
    with pytest.raises(ValueError, match=r'Nothing says which text to ask for: say prompt="\.\.\."'):
        sampled(folder, tmp_path / "out", "n=1")


def test_it_is_not_measured(folder, tmp_path):
    with pytest.raises(UserError, match="is not a run, and has no data to be compared with"):
        measured(folder, tmp_path / "out.jsonl")


DOCUMENT = (ROOT / "docs/stable_diffusion.md").read_text()


@pytest.mark.parametrize("words", commands(DOCUMENT), ids=[" ".join(words[2:]) for words in commands(DOCUMENT)])
def test_a_documented_command(folder, tmp_path, monkeypatch, words):
    """As it is printed, with a folder and pictures that are there, and few steps; a size in proportion."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "mask.png"):
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(name)
    _, _, typed = program(words)
    sizes = {"height=768": "height=24", "width=512": "width=16"}
    typed = [sizes.get(word, word) for word in typed if not word.startswith(("ckpt=", "n=", "grid.steps="))]
    made = sampled(folder, tmp_path / "out", *typed, "n=2", "grid.steps=4")["images"]
    assert made.shape == (2, *((24, 16) if "height=24" in typed else (16, 16)), 3) and (made[0] != made[1]).any()


def test_the_scheduler_settings_that_are_refused_are_documented():
    from diffusion.foreign.scheduler import IDLE, READ, WORDS

    named = re.search(r"A setting that has no counterpart \(([^)]*)\)", DOCUMENT)[1]
    assert len(found := set(re.findall(r"`(\w+)`", named))) > 2 and not found & {*IDLE, *READ, *WORDS}
