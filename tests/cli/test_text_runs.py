"""Runs that are told of texts: with an encoder of their own, and with a frozen one; resumed, moved, measured."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from composing import composed
from inside import measured, sampled, trained
from stable_folders import clip

from diffusion.checkpoint import load
from diffusion.evaluation.subjects import Drawn, exact
from diffusion.grids import Trailing
from diffusion.samplers import DDIM
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.training.run import train

DATA = ["dataset=captioned_digits", "dataset.image_size=16", "dataset.num_classes=200", "dataset.n=48"]
SMALL = [*DATA, "network.attention=[8]", "eval_every=4", "checkpoint_every=2", "metric=none", "steps=4", "lr_schedule=constant", "warmup=0"]
ENCODER = ["conditions.encoder.channels=16", "conditions.encoder.depth=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("texts") / "run", *SMALL, "conditions=text", *ENCODER)


def saved(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


@pytest.mark.xdist_group("texts")
def test_a_resumed_run_goes_on_bit_for_bit(run, tmp_path):
    """Stopped after 2 of its 4 steps: the weights of network and encoder, their averages, and the optimizer's state."""
    config = yaml.safe_load((run / "source.yaml").read_text())
    train(config | {"steps": 2, "trainer": config["trainer"] | {"max_steps": 2}}, tmp_path / "run")
    assert saved(tmp_path / "run")["global_step"] == 2
    train(config | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    one, two = saved(run), saved(tmp_path / "run")
    names = one["state_dict"].keys()
    assert any("encoder.blocks" in name for name in names) and names == two["state_dict"].keys()
    for part in (lambda c: c["state_dict"], lambda c: c["ema"]["shadow"]):
        assert all(torch.equal(part(one)[name], part(two)[name]) for name in part(one))
    moments = [[v for state in c["optimizer_states"][0]["state"].values() for v in state.values()] for c in (one, two)]
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*moments, strict=True))


@pytest.mark.xdist_group("texts")
def test_a_run_is_sampled_without_its_data(run, tmp_path):
    """Image i is asked for caption i, in words, or for a prompt: the same image for the same text, however it is said."""
    moved = shutil.copytree(run, tmp_path / "moved")
    model = load(moved)
    captions = yaml.safe_load((run / "config.yaml").read_text())["conditions"]["captions"]
    by_default = sampled(moved, tmp_path / "a", "n=3")
    assert by_default["prompts"].tolist() == captions[:3] and by_default["images"].shape == (3, 16, 16, 1)
    (tmp_path / "file").write_text("\n".join(captions[:3]))
    assert np.array_equal(sampled(moved, tmp_path / "b", "n=3", f"prompts={tmp_path / 'file'}")["images"], by_default["images"])
    recipe = model.recipe()
    for i in range(3):
        alone = recipe([i], model.conditions.parse(captions[i])).images
        assert (alone.int() - torch.from_numpy(by_default["images"][i]).int()).abs().max() <= 1  # the rounding of a batched product


@pytest.mark.xdist_group("texts")
def test_a_run_is_measured_and_its_passport_says_what_was_asked(run, tmp_path):
    words = ["metric=fd", "metric.extractor=Pixels", "metric.n=8", "metric.groups=0", "grid.steps=2", f"paths.cache={run.parent / 'cache'}"]
    asked = measured(run, tmp_path / "out.jsonl", *words)["passport"]["conditions"]
    assert asked["encoder"]["name"] == "Words" and asked["prompts"]["from"] == "captions of the training data"
    assert asked["prompts"]["count"] == len(load(run).conditions.captions)


@pytest.mark.xdist_group("frozen")
def test_a_frozen_encoder_is_no_part_of_the_run(tmp_path):
    """Its weights are not in the checkpoint; its place and hash are in the configuration, and another one there is refused."""
    folder = clip(tmp_path / "clip")
    run = trained(tmp_path / "run", *SMALL, "conditions=clip", f"conditions.encoder.folder={folder}", "conditions.encoder.pooled=true")
    said = yaml.safe_load((run / "config.yaml").read_text())["conditions"]["encoder"]
    assert said["folder"] == str(folder) and len(said["hash"]) == 16
    names = saved(run)["state_dict"]
    assert not [name for name in names if "encoder" in name or "text_model" in name] and any("pool.weight" in name for name in names)
    first, again = (sampled(run, tmp_path / str(i), "prompt=a 7, left of a 2", "n=2")["images"] for i in range(2))
    assert np.array_equal(first, again)
    cached = list((tmp_path / "cache").glob("*/text-*.f32"))
    assert len(cached) == 1 and (cached[0].stat().st_size - 32) % (78 * 16 * 4) == 0
    clip(folder, seed=1)
    with pytest.raises(UserError, match="holds another model than the run was trained with"):
        load(run)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"encoder\.folder=.* is no folder: say that of a text encoder"):
        load(run)


def test_the_exact_denoiser_and_the_floor_know_captions(tmp_path):
    """What is asked for by a caption is one of the pictures that have it, and by another text is none."""
    config = composed(*DATA, "conditions=text_bytes", f"paths.cache={tmp_path}")
    subject = exact(config, torch.device("cpu"))
    data, conditions = subject.data, subject.model.conditions
    captions = [data.captions[i] for i in (0, 5, 9)]
    cond = conditions.parse(captions)
    made = subject.model.recipe(DDIM(), Trailing(30), [])(range(3), cond).images.int()
    drawn = Drawn(data, conditions)(range(3), cond).images
    for image, other, caption in zip(made, drawn, captions, strict=True):
        have = torch.from_numpy(np.array(data.images[[text == caption for text in data.captions]]))
        assert (have.int() - image).flatten(1).abs().amax(1).min() <= 1
        assert (have == other).flatten(1).all(1).any()
    with pytest.raises(UserError, match="has no image of a condition that is asked for"):
        Drawn(data, conditions)([0], conditions.parse("nothing of the kind"))
    assert build(config["dataset"], "dataset").load().captions == data.captions
