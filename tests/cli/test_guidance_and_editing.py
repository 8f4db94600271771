"""A classifier trained, guidance by it, and the edits, as a user types them."""

import json

import numpy as np
import pytest
from commands import SMALL, command, succeeded
from PIL import Image

from diffusion.checkpoint import classifier, denoiser
from diffusion.support.errors import UserError

SMALL = [word for word in SMALL if not word.startswith("callbacks")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shared = ["logger=none", "metric=none", f"paths.runs={folder}", f"paths.cache={folder / 'cache'}"]
    succeeded(command("train.py", *SMALL, *shared, "name=model", "steps=3"))
    succeeded(
        command("train.py", *SMALL, *shared, "name=classifier", "task=classifier", "ema=none", "optimizer.lr=0.05", "lr_schedule=constant")
    )
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(folder / "image.png")
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 8, 1).repeat(16, 0)).save(folder / "mask.png")
    return folder


def sample(runs, *words):
    out = runs / "out"
    result = command("sample.py", f"ckpt={runs / 'model'}", "n=4", "grid.steps=4", "device=cpu", f"out={out}", *words)
    return result, lambda: np.load(out / "samples.npz")["images"]


@pytest.mark.xdist_group("guidance")
def test_the_classifiers_run(runs):
    lines = [json.loads(line) for line in (runs / "classifier/metrics.jsonl").read_text().splitlines()]
    assert "loss/accuracy" in lines[-1]
    assert any(key.startswith("loss/accuracy/t") for line in lines for key in line)
    assert not (runs / "classifier/samples").exists()


@pytest.mark.xdist_group("guidance")
def test_guidance_by_a_second_run(runs):
    stages = "guidance=[classifier,clip]"
    plain, images = sample(runs, stages, "guidance.scale=0", f"guidance.ckpt={runs / 'classifier'}")
    succeeded(plain)
    before = images()
    succeeded(sample(runs, stages, "guidance.scale=30", f"guidance.ckpt={runs / 'classifier'}")[0])
    assert (images() != before).any()


@pytest.mark.xdist_group("guidance")
def test_what_is_missing_is_a_sentence(runs):
    for load, path, words in (
        (classifier, None, "guidance.ckpt=runs/NAME"),
        (classifier, runs / "model", "where a NoisyClassifier is needed"),
        (denoiser, runs / "classifier", "where a Denoiser is needed"),
    ):
        with pytest.raises(UserError, match=words):
            load(path)
    result, _ = sample(runs, "edit=img2img")
    assert result.returncode == 1
    assert "edit.image=FILE" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.xdist_group("guidance")
def test_edits(runs):
    files = [f"edit.image={runs / 'image.png'}", f"edit.mask={runs / 'mask.png'}"]
    result, images = sample(runs, "edit=inpaint", *files, "edit.resample=2")
    succeeded(result)
    assert (images()[:, :, :4] == 200).all()
    assert (images()[:, :, 4:] != 200).any()
    succeeded(sample(runs, "edit=img2img", f"edit.image={runs / 'image.png'}", "edit.strength=0.5", "trajectory=true")[0])
    assert (runs / "out/trajectory.gif").exists()
    succeeded(sample(runs, "edit=reconstruct", "sampler=ddim", f"edit.image={runs / 'image.png'}")[0])
    result, images = sample(runs, "between=[3,8]", "classes=[1]")
    succeeded(result)
    row = images()
    succeeded(sample(runs, "seed=3", "classes=[1]", "n=1")[0])
    assert np.abs(images()[0].astype(int) - row[0]).max() <= 1
