"""An autoencoder trained, measured, shown, and asked for what it is not, as a user types it."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from composing import composed
from inside import lines, measured, sampled, trained
from PIL import Image

from diffusion.checkpoint import denoiser, load, read
from diffusion.codecs import Pixels
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.training.run import train

QUICK = ("task=autoencoder", "optimizer.lr=0.01", "lr_schedule=constant", "ema_decay=0.5", "metric.n=20", "dataset.n=64")
MEASURED = "metric=[psnr,ssim,rfd]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder of 12 x 10 pixels, which f = 4 does not divide into 10, and a denoiser."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "vae", *QUICK, "dataset.image_size=[12,10]", "network.multipliers=[1,2,2]", "eval_at_start=true", "steps=24")
    trained(folder / "model", "steps=1", "metric=none")
    return folder


def pictures(run, split="train"):
    config = load(run).config
    return torch.from_numpy(np.array(build(config["dataset"] | {"split": split}, "dataset").load().images))


def reconstructed(run, originals):
    """By the posterior's mean, with the averaged weights."""
    network, x = load(run).denoiser.network, Pixels().encode(originals)
    with torch.no_grad():
        return Pixels().decode(network.decode(network.moments(x)[0])[..., : x.shape[2], : x.shape[3]])


@pytest.mark.xdist_group("autoencoder")
def test_the_training(runs):
    """Its losses have no time; its numbers get better, and have passports; a grid shows pictures beside reconstructions."""
    seen = lines(runs / "vae/metrics.jsonl")
    assert {"loss", "loss/reconstruction", "loss/kl"} <= {key for line in seen for key in line}
    assert not [key for line in seen for key in line if "of4" in key]
    numbers = {key: [line[key] for line in seen if key in line] for key in ("psnr@20", "ssim@20", "rfd-pixels@20")}
    assert numbers["psnr@20"][-1] > numbers["psnr@20"][0] + 0.3 and numbers["rfd-pixels@20"][-1] < numbers["rfd-pixels@20"][0]
    passports = [line["passport"] for line in seen if "passport" in line]
    assert {p["metric"] for p in passports} == numbers.keys() and all(p["conditions"] == {"name": "Originals"} for p in passports)
    grid = Image.open(runs / "vae/samples/main-step=00000024.png")
    assert grid.width > 1.5 * grid.height * 10 / 12 / 4


@pytest.mark.xdist_group("autoencoder")
def test_the_latents_statistics(runs):
    """The variance of draws is that of the means and the mean of the variances: each over all pictures and places, by channel."""
    found, originals = read(runs / "vae")[1]["latents"], pictures(runs / "vae")
    mean, logvar = load(runs / "vae").denoiser.network.moments(Pixels().encode(originals))
    drawn = torch.distributions.Normal(mean, (logvar / 2).exp()).sample((200,)).movedim(2, 0).flatten(1).double()
    assert found["n"] == 64 and found["mean"] == pytest.approx(mean.mean((0, 2, 3)).tolist(), rel=1e-4, abs=1e-5)
    assert found["std"] == pytest.approx(drawn.std(1).tolist(), rel=2e-2)


@pytest.mark.xdist_group("autoencoder")
def test_reconstructions_stand_beside_their_pictures(runs, tmp_path):
    """Those of the run's data; of a file; of the files in a folder, by their names."""
    originals = pictures(runs / "vae")
    out = sampled(runs / "vae", tmp_path / "own", "edit=autoencode", "n=5", "seed=3")
    assert np.array_equal(out["images"][:, :, :10], originals[:5]) and np.array_equal(
        out["images"][:, :, 10:], reconstructed(runs / "vae", originals[:5])
    )
    (tmp_path / "folder").mkdir()
    for i in (1, 0):
        Image.fromarray(originals[i, ..., 0].numpy()).save(tmp_path / "folder" / f"{i}.png")
    for shown, expected in ((tmp_path / "folder", [0, 1, 0]), (tmp_path / "folder" / "1.png", [1, 1, 1])):
        images = sampled(runs / "vae", tmp_path / "out", "edit=autoencode", f"edit.image={shown}", "n=3")["images"]
        assert np.array_equal(images[:, :, :10], originals[expected])


@pytest.mark.xdist_group("autoencoder")
def test_between_two_pictures(runs, tmp_path):
    originals = pictures(runs / "vae")
    Image.fromarray(originals[7, ..., 0].numpy()).save(tmp_path / "7.png")
    images = sampled(runs / "vae", tmp_path / "out", "edit=interpolate", f"edit.images=[2,{tmp_path / '7.png'}]", "n=4")["images"]
    assert np.array_equal(images[[0, 3]], reconstructed(runs / "vae", originals[[2, 7]]))


@pytest.mark.xdist_group("autoencoder")
def test_evaluation_has_the_numbers_of_the_training_and_those_of_another_split(runs, tmp_path):
    trained_to = [line for line in lines(runs / "vae/metrics.jsonl") if "psnr@20" in line][-1]
    again = measured(runs / "vae", tmp_path / "a.jsonl", "metric=psnr", "metric.n=20")
    assert again["psnr@20"] == trained_to["psnr@20"] and again["passport"]["id"] == trained_to["passport"]["id"]
    whole = measured(runs / "vae", tmp_path / "whole.jsonl", "metric=[psnr,rfd]", "metric.n=1000")
    assert whole["metric"] == "rfd-pixels@64" and whole["passport"]["n"] == whole["passport"]["reference"]["n"] == 64
    cache = f"paths.cache={runs / 'cache'}"
    other = measured(runs / "vae", tmp_path / "b.jsonl", "metric=psnr", "metric.n=20", "dataset.split=test", cache)
    test = pictures(runs / "vae", "test")[:20]
    apart = (test.double() - reconstructed(runs / "vae", test).double()).square().flatten(1).mean(1)
    assert other["psnr@20"] == pytest.approx((10 * (255**2 / apart).log10()).mean().item())


@pytest.mark.xdist_group("autoencoder")
def test_the_commands_named_at_the_end_work(runs, tmp_path):
    """Those of an autoencoder and of a denoiser, as they are printed."""
    for run in (runs / "vae", runs / "model"):
        for command in load(run).denoiser.uses.values():
            _, script, where, *words = command.format(run, dataset="synthetic").split()
            if script == "sample.py":
                assert len(sampled(run, tmp_path / "out", *words, "n=2")["images"]) == 2 and where == f"ckpt={run}"
            else:
                made = trained(tmp_path / "latents", "steps=1", "metric=none", "dataset.n=64", where, *words)
                assert load(made).codec.weights


@pytest.mark.xdist_group("autoencoder")
def test_pictures_that_are_not_prepared_here(runs, tmp_path):
    """Their cache is made where the command says that it may be."""
    moved = tmp_path / "moved"
    shutil.copytree(runs / "vae", moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["dataset"]["cache"] = str(tmp_path / "cache")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=rf"such as paths.cache={tmp_path / 'cache'}"):
        sampled(moved, tmp_path / "out", "edit=autoencode", "n=2")
    images = sampled(moved, tmp_path / "out", "edit=autoencode", "n=2", f"paths.cache={tmp_path / 'cache'}")["images"]
    assert np.array_equal(images, sampled(runs / "vae", tmp_path / "own", "edit=autoencode", "n=2")["images"])


@pytest.mark.xdist_group("autoencoder")
def test_what_a_run_is_not(runs, tmp_path):
    """An autoencoder where a denoiser is needed, and the reverse."""
    vae, model = runs / "vae", runs / "model"
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    for run, words, said in (
        (vae, [], "makes no pictures out of noise: say edit=autoencode"),
        (vae, ["edit=img2img", f"edit.image={picture}"], "makes no pictures out of noise"),
        (vae, ["edit=interpolate", "edit.images=[0,99]"], "edit.images names picture 99, and there are those from 0 to 63"),
        (vae, ["edit=autoencode", "height=17", "width=9"], "height and width say 17 x 9, and the pictures are of 12 x 10"),
        (vae, ["edit=interpolate"], r"between two pictures: edit.images=\[FILE,FILE\]"),
        (vae, ["edit=autoencode", "edit.image=nowhere.png"], "edit.image=nowhere.png cannot be read as a picture"),
        (vae, ["edit=autoencode", "classes=[1]"], "told pictures, not classes="),
        (vae, ["edit=autoencode", "classes=1"], "told pictures, not classes="),
        (model, ["edit=autoencode"], "this run is none: say a ckpt of task=autoencoder"),
    ):
        with pytest.raises((UserError, ValueError), match=said):
            sampled(run, tmp_path / "out", *words)
    with pytest.raises(UserError, match="holds a Autoencoding where a Denoiser is needed"):
        denoiser(vae)
    for run, words, said in (
        (model, ["metric=psnr"], "compares a reconstruction with its own picture"),
        (vae, ["metric=nll_ode"], "this is an autoencoder"),
        (vae, ["metric=psnr", "metric.n=4", "floor=true"], "floor=true draws images"),
    ):
        with pytest.raises(UserError, match=said):
            measured(run, tmp_path / "lines.jsonl", *words)


@pytest.mark.parametrize(
    "words, said",
    [
        (["task=autoencoder", "network=digits"], "UNet is none: say network=autoencoder"),
        (["task=autoencoder", "conditions=classes"], "leave conditions out, or say conditions=originals"),
        (["task=autoencoder", "codec=standardised"], "codec=standardised is for float data"),
        (["task=autoencoder", "objective=simple"], "task=autoencoder goes with objective=reconstruction"),
        (["task=autoencoder", "guidance=[cfg]"], "leave guidance out"),
        (["task=autoencoder", "objective=reconstruction_gan", "dataset.image_size=16"], "say objective.perceptual.weights=PATH"),
        (["task=autoencoder", "objective=reconstruction_gan", "objective.perceptual.weights=random"], "of 16 pixels or more"),
        (
            ["task=autoencoder", "objective.adversary.weight=1", "compile=blocks"],
            "compile=blocks does not go with objective Reconstruction",
        ),
        (["task=autoencoder", "metric=nll_vlb"], "this is an autoencoder"),
        (["objective=reconstruction"], "trains an autoencoder: say task=autoencoder"),
        (["callbacks=autoencoder"], "callbacks=autoencoder keeps an autoencoder's latents"),
        (["network=autoencoder"], "encodes pictures and denoises none"),
        (["conditions=originals"], "UNet is none: say network=autoencoder"),
        (["metric=psnr"], "it is for task=autoencoder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together(tiny, tmp_path, words, said):
    with pytest.raises((UserError, ValueError), match=said):
        train(tiny(*words), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "words", [["network=autoencoder_vq", "network.codes=8"], ["objective=reconstruction_scaled"]], ids=lambda words: words[0]
)
def test_other_forms_train(tiny, tmp_path, words):
    """The VQ form, and the scale that is learned, which plays no part in a loaded model."""
    train(tiny(*QUICK, *words, "metric=psnr", "metric.n=4"), tmp_path / "run")
    last = [line for line in lines(tmp_path / "run/metrics.jsonl") if "loss" in line][-1]
    assert "loss/vq" in last or last["loss/scale"] != 0
    assert load(tmp_path / "run").denoiser.network.factor == 2


def test_codes_are_learned(tmp_path):
    """With the settings that the words bring: the latents come near the codes, and many of these are used."""
    words = ["task=autoencoder", "network=autoencoder_vq", "dataset=digits", "steps=200", "metric=none", "checkpoint_every=200"]
    config = composed(*words, "callbacks.distance=null", "callbacks.samples=null", f"paths.cache={tmp_path / 'cache'}")
    train(config, tmp_path / "run")
    network = load(tmp_path / "run").denoiser.network
    with torch.no_grad():
        z = network.encoded(Pixels().encode(pictures(tmp_path / "run")[:500]))
        code = network.nearest(z)
    used = len(code.movedim(1, -1).flatten(0, -2).unique(dim=0))
    assert used >= 20 and (z - code).square().mean() < 0.7 * z.square().mean(), (used, (z - code).square().mean() / z.square().mean())


def test_digits_and_fashion_by_the_same_words():
    """What comes along: networks of f = 2 and 4 for 8 and 28 pixels, by the same word."""
    for data, side in (("digits", 8), ("fashion_mnist", 28)):
        config = composed("task=autoencoder", f"dataset={data}")
        network = build(config["network"], "network", {"in_channels": 1, "image_size": side})
        assert network.factor == {8: 2, 28: 4}[side] and set(config["metric"]) == {"psnr", "ssim", "rfd"}
