"""Diffusion in latents: a run whose codec is another run, as the commands train, move, resume, sample and measure it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from inside import lines, measured, sampled
from made_autoencoders import LATENTS, autoencoder, of_diffusers
from PIL import Image

from diffusion.checkpoint import load
from diffusion.codecs import Autoencoder
from diffusion.data import served
from diffusion.latents import codec
from diffusion.likelihood import bin_width
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.training.run import train

QUICK = ["lr_schedule=constant", "dataset.flip=true", "dataset.n=32", "eval_every=12", "optimizer.lr=0.01", "metric=none"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("vae") / "vae")


def in_latents(tiny, vae: Path, *words: str) -> dict:
    """The configuration of a run of seconds in the latents of this autoencoder."""
    return tiny("codec=autoencoder", f"codec.ckpt={vae}", *QUICK, *words)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path, rtol: float = 0.0) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=rtol, atol=rtol / 10)


@pytest.fixture(scope="module")
def run(tmp_path_factory, vae):
    """A run of twelve steps in latents, whose autoencoder is gone since."""
    from composing import TINY, composed

    folder = tmp_path_factory.mktemp("latents")
    shutil.copytree(vae, folder / "vae")
    words = [*TINY, f"paths.cache={folder / 'cache'}", "codec=autoencoder", f"codec.ckpt={folder / 'vae'}", *QUICK]
    train(composed(*words), folder / "begun", {"source.yaml": yaml.safe_dump(composed(*words))})
    shutil.rmtree(folder / "vae")
    return (folder / "begun").rename(folder / "moved")


def test_a_run_holds_its_autoencoder(run, vae):
    """Its folder was moved, and the autoencoder's is gone: it is the same codec, with the statistics and the hash in config.yaml."""
    model, said = load(run), yaml.safe_load((run / "config.yaml").read_text())["codec"]
    original = codec(str(vae))
    assert isinstance(model.codec, Autoencoder) and model.codec.sized(8, 8) == original.sized(8, 8) and model.codec.shape == (2, 4, 4)
    assert (said["mean"], said["std"], said["weights"]) == (LATENTS["mean"], LATENTS["std"], original.weights)
    assert sorted(path.name for path in (run / "codec").rglob("*.*")) == ["config.yaml", "last.ckpt"]
    assert model.recipe().describe()["codec"] == {"name": "Autoencoder", "weights": original.weights}
    batch = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    assert torch.equal(model.codec.encode(batch), original.encode(batch))


def test_it_is_sampled_and_measured_in_pixels(run, tmp_path):
    images = sampled(run, tmp_path / "out", "n=3", "trajectory=true")["images"]
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    larger = sampled(run, tmp_path / "larger", "n=2", "height=16")["images"]
    assert larger.shape == (2, 16, 8, 1)
    line = measured(run, tmp_path / "table.jsonl", "metric=sliced_wasserstein", "metric.n=8", "metric.groups=0")
    assert line["passport"]["codec"]["name"] == line["cell"]["codec"]["name"] == "Autoencoder"


def test_it_edits_pictures(run, tmp_path):
    """The picture is encoded; a mask paints the latents of which it covers a pixel, so that the picture elsewhere is what the autoencoder
    makes of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:3, :3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("n=2", f"edit.image={tmp_path / 'image.png'}")
    made = sampled(run, tmp_path / "varied", *words, "edit=img2img", "edit.strength=0.6")["images"]
    assert made.shape == (2, 8, 8, 1) and (made[0] != made[1]).any()
    sampled(run, tmp_path / "painted", *words, "edit=inpaint", f"edit.mask={tmp_path / 'mask.png'}")
    recipe = yaml.safe_load((tmp_path / "painted/recipe.json").read_text())
    assert recipe["sampler"]["mask"] == [[[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]]


def test_a_resumed_run_is_bit_for_bit(tiny, run, vae, tmp_path):
    """Also where the autoencoder's own run is gone."""
    shutil.copytree(vae, tmp_path / "vae")
    train(in_latents(tiny, tmp_path / "vae", "steps=5"), tmp_path / "run")
    shutil.rmtree(tmp_path / "vae")
    train(in_latents(tiny, tmp_path / "vae") | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    assert_same(run, tmp_path / "run")


def test_encoded_once_or_in_each_step_it_is_the_same_run(tiny, run, vae, tmp_path):
    """Up to rounding, and with mirrored pictures, whose latents are not the mirrored latents."""
    train(in_latents(tiny, vae, "codec.cached=false"), tmp_path / "run")
    assert not list((tmp_path / "cache").glob("*latents*")) and list((run.parent / "cache").glob("synthetic-latents-train-*"))
    assert_same(run, tmp_path / "run", rtol=1e-3)
    train(in_latents(tiny, vae, "dataset.flip=false"), tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same(run, tmp_path / "plain", rtol=1e-3)
    shapes = {path.stat().st_size for path in (tmp_path / "cache").glob("synthetic-latents-*/images.f32")}
    assert shapes == {32 * 1 * 2 * 2 * 4 * 4 * 4}  # without mirrored pictures


def test_the_cache_of_another_autoencoder_is_another(tiny, vae, tmp_path):
    """Or of mirrored pictures; that of the same one is found again."""
    dataset = build(tiny(*QUICK)["dataset"], "dataset")
    codecs = [codec(str(place)).sized(8, 8) for place in (vae, autoencoder(tmp_path / "other", seed=1), vae)]
    for made, flip in ((codecs[0], True), (codecs[1], True), (codecs[2], True), (codecs[0], False)):
        served(made, replace(dataset, flip=flip)).items(dataset.load())
    assert len(list((tmp_path / "cache").glob("synthetic-latents-*"))) == 3


def test_the_network_follows_the_latents(tiny, tmp_path, caplog):
    """A U-Net of 28 x 28 pictures is the lower part of itself on latents of 7, and the run says so and keeps it."""
    words = ["dataset.image_size=28", "network=mnist", "network.channels=8", "steps=1", "dataset.n=8"]
    place = autoencoder(tmp_path / "vae", "dataset.image_size=28", "dataset.n=8")
    with caplog.at_level("INFO"):
        train(in_latents(tiny, place, *words), tmp_path / "run")
    assert "network.multipliers=[2], by the size of the latents" in caplog.text
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["network"]["multipliers"] == [2]
    assert load(tmp_path / "run").codec.shape == (2, 7, 7)


def refused(sentence: str, config: dict, folder: Path) -> None:
    with pytest.raises((UserError, ValueError), match=sentence):
        train(config, folder)
    assert not (folder / "config.yaml").exists() and not (folder / "codec").exists()


def test_what_is_no_autoencoder_is_a_sentence(tiny, run, vae, tmp_path):
    new = tmp_path / "new"
    config = in_latents(tiny, vae)
    refused(r"^There is no checkpoint nowhere; give a run's folder", config | {"codec": config["codec"] | {"ckpt": "nowhere"}}, new)
    refused(r"^codec=autoencoder takes an autoencoder .* codec\.ckpt=runs/NAME\.$", tiny("codec=autoencoder", *QUICK), new)
    refused(r"is a run of another kind, and an autoencoder of pictures is needed", in_latents(tiny, run), new)
    refused(r"^codec\.mean=\[0\] should have 2 numbers, one for each channel", in_latents(tiny, vae, "codec.mean=[0]"), new)
    refused(r"with channels=1, and synthetic holds uint8 \[8, 8, 3\]", in_latents(tiny, vae, "dataset.channels=3"), new)
    refused(r"needs a range, and x_0 has none in this space", in_latents(tiny, vae, "guidance=[cfg,clip]"), new)
    bare = autoencoder(tmp_path / "bare", latents=None)
    refused(r"bare does not say the mean and the deviation of its latents", in_latents(tiny, bare), new)
    train(in_latents(tiny, bare, "codec.mean=[0,0]", "codec.std=[1,1]", "steps=1"), new)


def test_another_autoencoder_is_not_taken_for_the_run_s(tiny, run, tmp_path):
    """Neither in its folder nor, where that has none, in the place that its configuration names."""
    broken = shutil.copytree(run, tmp_path / "broken")
    shutil.rmtree(broken / "codec")
    other = autoencoder(tmp_path / "other", seed=1)
    shutil.copytree(other, broken / "codec")
    changed = r"^The autoencoder in .*/codec is another than it was: its weights and settings had the hash \w{16}, now \w{16}\.$"
    with pytest.raises(UserError, match=changed):
        load(broken)
    for key, value in (("network", {"heads": 2}), ("codec", {"low": 0.0})):
        altered = shutil.copytree(run, tmp_path / key)
        config = yaml.safe_load((altered / "codec/config.yaml").read_text())
        (altered / "codec/config.yaml").write_text(yaml.safe_dump(config | {key: config[key] | value}))
        with pytest.raises(UserError, match=changed):
            load(altered)
    shutil.rmtree(broken / "codec")
    with pytest.raises(UserError, match=r"^There is no checkpoint .*vae"):
        load(broken)
    refused_at = (broken / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"^The autoencoder is not that of the run .*: codec\.weights was \w{16} and would be \w{16}\.$"):
        train(in_latents(tiny, other) | {"resume": str(broken)}, broken)
    assert (broken / "config.yaml").read_text() == refused_at and not (broken / "codec").exists()


def test_a_copied_configuration_is_trusted_no_more_than_another(run, tmp_path):
    foreign = shutil.copytree(run, tmp_path / "foreign")
    config = yaml.safe_load((foreign / "codec/config.yaml").read_text())
    (foreign / "codec/config.yaml").write_text(yaml.safe_dump(config | {"network": {"_target_": "os.system", "command": "true"}}))
    with pytest.raises(
        UserError, match=r"codec/config\.yaml: network\._target_='os\.system' is not among the classes that a run's file may"
    ):
        load(foreign)


def test_the_passports_of_latents_and_pixels_share_an_axis(tiny, vae, tmp_path):
    """The autoencoder is a part of the model, as its denoiser is, and not of the way to measure."""
    metric = ["metric=sliced_wasserstein", "metric.n=8", "metric.groups=0", "steps=1"]
    train(tiny(*QUICK, *metric, "guidance=none", "parameterization=v"), tmp_path / "pixels")
    train(in_latents(tiny, vae, *metric, "guidance=none"), tmp_path / "latents")
    said = [
        next(line for line in lines(tmp_path / name / "metrics.jsonl") if "passport" in line)["passport"] for name in ("pixels", "latents")
    ]
    assert said[0]["id"] == said[1]["id"] and said[0]["codec"] is None and said[1]["codec"]["weights"]


def test_an_autoencoder_of_diffusers_is_a_codec(tiny, tmp_path):
    """Its latents are diffusers' own, (z - shift) scale; the run holds a copy that diffusers reads."""
    import diffusers

    place = of_diffusers(tmp_path / "vae")
    train(in_latents(tiny, place, "steps=2"), tmp_path / "run")
    theirs = diffusers.AutoencoderKL.from_pretrained(place).eval()
    shutil.rmtree(place)
    batch = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    with torch.no_grad():
        posterior = theirs.encode(batch.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
        pictures = theirs.decode(posterior.mean).sample
    made = load(tmp_path / "run").codec
    torch.testing.assert_close(made.encode(batch), (posterior.mean - 0.25) * 0.5, rtol=1e-5, atol=1e-5)
    z = posterior.mean + posterior.std * 0.7
    torch.testing.assert_close(made.encode(batch, lambda x: torch.full_like(x, 0.7)), (z - 0.25) * 0.5, rtol=1e-5, atol=1e-5)
    config = tmp_path / "run/codec/config.json"
    config.write_text(config.read_text().replace('"silu"', '"relu"'))
    with pytest.raises(UserError, match="its weights and settings had the hash"):
        load(tmp_path / "run")
    config.write_text(config.read_text().replace('"relu"', '"silu"'))
    levels = (pictures.clamp(-1, 1).permute(0, 2, 3, 1) + 1) * 127.5
    assert (made.decode(made.encode(batch)).double() - levels).abs().max() <= 0.5 + 1e-3
    assert torch.equal(
        diffusers.AutoencoderKL.from_pretrained(tmp_path / "run/codec").decoder.conv_in.weight, theirs.decoder.conv_in.weight
    )


def test_a_folder_of_another_format_is_a_sentence(tiny, tmp_path):
    new, place = tmp_path / "new", of_diffusers(tmp_path / "vae")
    refused(r"with channels=3, and synthetic holds uint8 \[8, 8, 1\]", in_latents(tiny, of_diffusers(tmp_path / "colour", 3)), new)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    refused(r"^.*vae has _class_name=VQModel, and only AutoencoderKL can be read", in_latents(tiny, place), new)
    (place / "config.json").write_text(json.dumps(config))
    (place / "diffusion_pytorch_model.safetensors").rename(place / "diffusion_pytorch_model.bin")
    refused(r"holds no diffusion_pytorch_model\.safetensors; other kinds of files may be programs", in_latents(tiny, place), new)
    (tmp_path / "empty").mkdir()
    refused(r"^There is no checkpoint .*empty", in_latents(tiny, tmp_path / "empty"), new)


def test_latents_of_another_shape_are_a_sentence(run, tmp_path):
    """The denoiser's weights are of other latents than those of the autoencoder that its configuration names."""
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "codec")
    of_diffusers(other / "codec")
    config = yaml.safe_load((other / "config.yaml").read_text())
    for weights, sentence in (
        ("as it was", "another than it was: its weights"),
        (None, r"codec\.mean=.* should have 3 numbers, one for each"),
    ):
        config["codec"]["weights"] = weights
        (other / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises((UserError, ValueError), match=sentence):
            load(other)
    config["codec"] |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"last\.ckpt does not match the network that .*config\.yaml describes"):
        load(other)


def test_a_likelihood_of_pixels_is_a_sentence(tiny, vae, tmp_path):
    config = in_latents(tiny, vae, "steps=1", "eval_every=1") | {"metric": tiny("metric=nll_vlb", "metric.images=2")["metric"]}
    with pytest.raises(UserError, match=r"is of pictures of 8 bits, and this model's space has no levels; choose another metric"):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^Autoencoder does not keep 8-bit levels evenly spaced"):
        bin_width(load(tmp_path / "run").codec)
