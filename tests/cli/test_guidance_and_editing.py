"""A classifier trained, guidance by it, and the edits, as a user types them."""

import json

import numpy as np
import pytest
from commands import SMALL, command, succeeded
from inside import sampled, trained
from PIL import Image

from diffusion.checkpoint import classifier, denoiser
from diffusion.support.errors import UserError

SMALL = [word for word in SMALL if not word.startswith("callbacks")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shared = ["logger=none", "metric=none", f"paths.runs={folder}", f"paths.cache={folder / 'cache'}"]
    quick = ["optimizer.lr=0.05", "lr_schedule=constant", "ema=none"]  # what a class is has been learned in these few steps
    succeeded(command("train.py", *SMALL, *shared, *quick, "name=model", "parameterization=v"))
    succeeded(command("train.py", *SMALL, *shared, *quick, "name=classifier", "task=classifier"))
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


@pytest.mark.xdist_group("guidance")
def test_a_classifier_guides_a_model_that_has_no_classes(runs, tmp_path):
    """The classes asked for are the classifier's; without `unconditional` it is refused, and so is a class the classifier has not."""
    model = trained(runs / "none", "conditions=none", "metric=none", "steps=1", "eval_every=9", "checkpoint_every=1")
    stages, second = "guidance=[unconditional,classifier,clip]", f"guidance.ckpt={runs / 'classifier'}"
    made = [sampled(model, tmp_path, "n=6", stages, second, f"guidance.scale={scale}") for scale in (0, 30)]
    assert (made[0]["images"] != made[1]["images"]).any() and made[1]["labels"].tolist() == [0, 1, 2, 3, 0, 1]
    assert (sampled(model, tmp_path, "n=2", stages, second, "classes=[3]")["labels"] == 3).all()
    with pytest.raises(UserError, match="0 to 3"):
        sampled(model, tmp_path, "n=2", stages, second, "classes=[4]")
    with pytest.raises(ValueError, match=r"guidance=\[unconditional,classifier\]"):
        sampled(model, tmp_path, "n=2", "guidance=[classifier,clip]", second)
    with pytest.raises(ValueError, match=r"guidance\.scale=2 needs a conditional model"):
        sampled(model, tmp_path, "n=2", "guidance.scale=2")


@pytest.mark.xdist_group("guidance")
def test_algorithm_1_guides_what_ddpm_draws(runs, tmp_path):
    """As a stage of its own, told the sampler that is typed; another sampler is refused with the words that do."""
    words = ["n=4", "grid.steps=4", "guidance=[clip,classifier_mean]", f"guidance.ckpt={runs / 'classifier'}"]
    made = [sampled(runs / "model", tmp_path, *words, "sampler=ddpm", f"guidance.scale={scale}")["images"] for scale in (0, 30)]
    assert (made[0] != made[1]).any()
    with pytest.raises(ValueError, match=r"DDIM draws otherwise: say sampler=ddpm, or guidance=\[classifier,clip\]"):
        sampled(runs / "model", tmp_path, *words, "sampler=ddim")


@pytest.mark.xdist_group("guidance")
def test_a_negative_class_by_its_number(runs, tmp_path):
    words = ["n=4", "classes=[1]", "guidance.scale=3", "grid.steps=2"]
    plain, away, itself = (sampled(runs / "model", tmp_path, *words, f"guidance.negative={c}")["images"] for c in ("null", 3, 1))
    conditional = sampled(runs / "model", tmp_path, "n=4", "classes=[1]", "guidance.scale=1", "grid.steps=2")["images"]
    assert (away != plain).any() and (away != itself).any()
    assert np.abs(itself.astype(int) - conditional).max() <= 1  # away from what it is guided to: nothing is left of the guidance
    with pytest.raises(UserError, match="cat is not among the model's classes, which are the numbers 0 to 3"):
        sampled(runs / "model", tmp_path, *words, "guidance.negative=cat")
