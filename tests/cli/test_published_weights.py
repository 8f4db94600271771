"""Weights in the layouts that others publish become runs by a command, which are sampled and measured like any other."""

import json
from pathlib import Path

import made_autoencoders
import numpy as np
import pytest
import torch
from commands import ROOT, command, succeeded
from published_dit import PublishedDiT
from published_edm import EDMNet
from published_openai import OpenAI, numbers

pytestmark = pytest.mark.xdist_group("published weights")
HERE = {"PYTHONPATH": str(ROOT)}
OPENAI = "--image_size 16 --channel_mult 1,2 --num_heads 2 --learn_sigma True --class_cond True --timestep_respacing 5"
SAMPLERS = ("sampler=ddim", "sampler=dpmpp_2m", "sampler=heun grid=karras")


def convert(place: Path, line: str):
    return command("-m", "diffusion.convert", *line.split(), cwd=place, env=HERE)


def sample(place: Path, run: str, line: str = "") -> np.ndarray:
    words = (f"ckpt={run}", "n=3", "out=images.npz", "grid.steps=3", *line.split())
    succeeded(command(str(ROOT / "sample.py"), *words, cwd=place, env=HERE))
    return np.load(place / "images.npz")["arr_0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a file of each layout, small and of random weights, and an autoencoder of diffusers."""
    place = tmp_path_factory.mktemp("files")
    torch.save(numbers(OpenAI(32, (1, 2), 1, (2,), num_heads=2, num_classes=3).shapes()), place / "guided.pt")
    net = EDMNet(16, 32, (1, 2), 1, (8,), label_dim=3, augment_dim=9)
    edm = {name: net.taps if name.endswith("filter") else value for name, value in numbers(net.shapes()).items()}
    torch.save({f"model.{name}": value for name, value in edm.items()}, place / "edm.pt")
    dit = PublishedDiT(4, 2, 3, 48, 2, 4, 5)
    torch.save(numbers(dit.shapes()) | {"pos_embed": dit.positions(torch.float32)}, place / "dit.pt")
    return place


def test_a_command_s_flags_and_a_run_that_samples(files):
    """A flag that the tensors contradict leaves nothing behind; then the images are those of the network and the authors' sampler."""
    wrong = convert(files, f"guided.pt runs/guided {OPENAI} --num_channels 64")
    assert wrong.returncode == 1 and not (files / "runs" / "guided").exists()
    assert wrong.stderr.strip() == ("error: --num_channels 64 contradicts the tensors, which say 32; leave it out, or take another file.")
    result = convert(files, f"guided.pt runs/guided {OPENAI}")
    assert succeeded(result).strip() == "runs/guided"
    assert [line.split(" ")[0] for line in result.stderr.splitlines()] == [
        "--diffusion_steps",
        "--noise_schedule",
        "--use_new_attention_order",
    ]
    origin = json.loads((files / "runs" / "guided" / "diffusion.json").read_text())["origin"]
    assert origin["file"] == "guided.pt" and origin["flags"]["class_cond"] == "True" and len(origin["sha256"]) == 64
    images = sample(files, "runs/guided")
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8 and images.std() > 10


@pytest.mark.slow
def test_edm_s_and_dit_s_files_are_sampled_by_every_kind_of_sampler_and_measured(files):
    """DiT's autoencoder is copied into the run, so that its own folder may go."""
    pytest.importorskip("diffusers")
    made_autoencoders.of_diffusers(files / "vae", channels=3)
    succeeded(convert(files, "edm.pt runs/edm --arch ddpmpp --cbase 32 --cres 1,2"))
    succeeded(convert(files, "dit.pt runs/dit --num_heads 4 --vae vae"))
    (files / "vae").rename(files / "gone")
    for run, side, extra in (("runs/edm", 16, ""), ("runs/dit", 8, " guidance.scale=1.5")):
        seen = [sample(files, run, sampler + extra) for sampler in SAMPLERS]
        assert all(images.shape == (3, side, side, 3) and images.std() > 5 for images in seen)
        assert any((images != seen[0]).any() for images in seen[1:])
        words = (f"ckpt={run}", "reference=images.npz", "metric=sliced_wasserstein", "metric.n=3", "metric.groups=0", "grid.steps=3")
        succeeded(command("-m", "diffusion.evaluate", *words, cwd=files, env=HERE))
        line = json.loads((files / run / "metrics.jsonl").read_text().splitlines()[-1])
        assert line["sliced-wasserstein@3"] >= 0 and line["passport"]["n"] == 3
