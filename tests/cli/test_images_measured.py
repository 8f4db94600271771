"""Any images against any reference: one number by every way, that of other packages on the same features, and a sentence for what does not
fit."""

from zipfile import ZipFile

import numpy as np
import pytest
import torch
from commands import command, succeeded
from composing import TINY
from inside import lines, measured, measured_images, sampled, trained
from PIL import Image

from diffusion.metrics import DigitsClassifier, frechet_distance, read_statistics
from diffusion.metrics.extractors.digits import digits
from diffusion.support.errors import UserError

METRIC = "metric=fd_digits"
DATA = [word for word in TINY if word.startswith("dataset")]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 300 digits, an npz of 200 others with their classes, and a cache."""
    folder = tmp_path_factory.mktemp("images")
    images, labels = digits()
    images = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    (folder / "real").mkdir()
    for i, image in enumerate(images[:300]):
        Image.fromarray(image[..., 0]).save(folder / "real" / f"{i:03}.png")
    np.savez(folder / "made.npz", images[300:500] // 2 + 20, labels[300:500].numpy())
    return folder


def of(place, tmp_path, *words, metric=METRIC):
    out = tmp_path / "out.jsonl"
    return measured_images(out, metric, f"paths.cache={place / 'cache'}", f"images={place / 'made.npz'}", *words)


def features(place, pictures):
    return DigitsClassifier(cache=place / "cache")(torch.from_numpy(np.array(pictures)))


@pytest.fixture(scope="module")
def both(place):
    """The features of the images and of the real ones."""
    real = [np.asarray(Image.open(file))[..., None] for file in sorted((place / "real").iterdir())]
    return features(place, np.load(place / "made.npz")["arr_0"]), features(place, np.stack(real))


def test_it_is_the_distance_of_torch_fidelity(place, tmp_path, both):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    theirs = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, both), verbose=False)
    ours = of(place, tmp_path, f"reference={place / 'real'}")["fd-digits@200"]
    assert ours == pytest.approx(theirs[fid.KEY_METRIC_FID], rel=1e-6)


def test_it_is_the_distance_of_torchmetrics(place, tmp_path, both):
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Known(torch.nn.Module):
        """Images that are features already."""

        num_features = 64

        def forward(self, images):
            return images.flatten(1)

    theirs = fid.FrechetInceptionDistance(feature=Known(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    theirs.update(both[1].reshape(-1, 1, 8, 8), real=True)
    theirs.update(both[0].reshape(-1, 1, 8, 8), real=False)
    ours = of(place, tmp_path, f"reference={place / 'real'}")["fd-digits@200"]
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_statistics_are_the_reference_in_a_file(place, tmp_path):
    """The number, and its standard error, to the rounding of a file; and the file is that of other packages, mu and sigma."""
    whole = of(place, tmp_path, f"reference={place / 'real'}")
    kept = measured_images(tmp_path / "stats.npz", METRIC, f"reference={place / 'real'}", f"paths.cache={place / 'cache'}")
    assert kept["mu"].shape == (64,) and kept["sigma"].shape == (64, 64) and kept["n"] == 300
    np.testing.assert_allclose(kept["sigma"], kept["sigma"].T, rtol=1e-12)
    line = of(place, tmp_path, f"reference={tmp_path / 'stats.npz'}")
    for name in ("fd-digits@200", "fd-digits@200/error"):
        assert line[name] == pytest.approx(whole[name], rel=1e-10)
    said = line["passport"]["reference"]
    assert said["n"] == 300 and said["file"] == "mean and covariance" and line["passport"]["id"] != whole["passport"]["id"]


def test_a_file_of_others_has_an_unknown_network(place, tmp_path):
    """What pytorch-fid writes says nothing of where it came from: it is taken for the FID Inception network's, and the passport says so."""
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    read = read_statistics(tmp_path / "fid.npz")
    assert read.about["extractor"] == "not said by the file" and read.gaussians["features"].n is None

    class Inception(DigitsClassifier):
        frechet, dim = "fid", 2048

    extractor = Inception(cache=place / "cache")
    gaussian = read.gaussian(extractor, "features")
    assert frechet_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-9)  # and no warning of too few images
    with pytest.raises(UserError, match="does not say what network"):
        of(place, tmp_path, f"reference={tmp_path / 'fid.npz'}")
    extractor.dim = 64
    with pytest.raises(UserError, match="2048 features and digits has 64"):
        read.gaussian(extractor, "features")


def test_statistics_beside_images(place, tmp_path):
    """guided-diffusion's reference batches: the distance is to mu and sigma, and precision looks at the images."""
    kept = measured_images(tmp_path / "stats.npz", METRIC, f"reference={place / 'real'}", f"paths.cache={place / 'cache'}")
    few = np.load(place / "made.npz")["arr_0"][:50]
    np.savez(tmp_path / "batch.npz", arr_0=few, **kept)
    line = of(place, tmp_path, f"reference={tmp_path / 'batch.npz'}")
    assert line["fd-digits@200"] == of(place, tmp_path, f"reference={tmp_path / 'stats.npz'}")["fd-digits@200"]
    words = ["metric.extractor=DigitsClassifier", f"reference={tmp_path / 'batch.npz'}"]
    line = of(place, tmp_path, *words, metric="metric=precision_recall")
    assert line["recall-digits@200"] == 1.0 and line["passport"]["reference"]["n"] == 50  # they are among the images


def test_classes_in_an_npz_are_those_asked_for(place, tmp_path):
    words = [f"reference={place / 'made.npz'}", "metric.extractor=DigitsClassifier"]
    assert of(place, tmp_path, *words, metric="metric=accuracy")["accuracy-digits@200"] > 0.9
    arrays = dict(np.load(place / "made.npz"))
    np.savez(tmp_path / "wrong.npz", arrays["arr_0"], (arrays["arr_1"] + 1) % 10)
    line = of(place, tmp_path, f"images={tmp_path / 'wrong.npz'}", *words, metric="metric=accuracy")
    assert line["accuracy-digits@200"] < 0.1


def test_the_samples_of_a_run_give_the_number_of_the_run(tmp_path):
    """Measured twice, by two commands: the same number under the same passport."""
    cache = f"paths.cache={tmp_path / 'cache'}"
    run = trained(tmp_path / "run", "steps=2", "metric=none", "eval_every=9", "lr_schedule=constant", "grid.steps=3")
    sampled(run, tmp_path / "samples", "n=64", "seed=500", cache)
    succeeded(command("sample.py", f"ckpt={run}", f"out={tmp_path / 'samples.zip'}", "n=64", "seed=500", "device=cpu", cache))
    by_run = measured(run, tmp_path / "a.jsonl", METRIC, "metric.n=64", "seed=500", cache)
    for images in ("samples", "samples.zip"):
        by_images = measured_images(tmp_path / f"{images}.jsonl", f"images={tmp_path / images}", METRIC, cache, *DATA)
        assert by_images["fd-digits@64"] == pytest.approx(by_run["fd-digits@64"], rel=1e-7)
        assert by_images["passport"]["id"] == by_run["passport"]["id"]
        assert by_images["passport"]["weights"] == by_run["passport"]["weights"] and by_images["passport"]["nfe"] == 3
        assert by_images["fd-digits@64/error"] == pytest.approx(by_run["fd-digits@64/error"], rel=1e-6)  # in the same groups, too
    # What a metric would not have asked for is not the run's number, and has another id: one class, some of them, other sizes.
    others = {"one class": ["classes=[3]"], "between": ["between=[3,8]"], "some": []}
    for name, words in others.items():
        sampled(run, tmp_path / name, "n=64", "seed=500", cache, *words)
        n = "metric.n=50" if name == "some" else "metric.n=64"
        line = measured_images(tmp_path / "c.jsonl", f"images={tmp_path / name}", METRIC, n, cache, *DATA)
        assert line["passport"]["sampler"] == {"name": "given images"} and line["passport"]["id"] != by_run["passport"]["id"]


@pytest.mark.parametrize("recipe", ["3", '{"sampler": {"name": "DDIM"}, "nfe": "many"}', '{"seeds": []}'])
def test_a_recipe_that_says_something_else_is_none(place, tmp_path, recipe):
    np.savez(tmp_path / "x.npz", arr_0=np.load(place / "made.npz")["arr_0"], recipe=np.array(recipe))
    line = of(place, tmp_path, f"images={tmp_path / 'x.npz'}", f"reference={place / 'real'}")
    assert line["passport"]["sampler"] == {"name": "given images"} and line["passport"]["nfe"] == 0


@pytest.mark.slow
def test_the_command_on_two_processes(place, tmp_path):
    """As a user types it, a data set's word as the reference; two processes give the number of one, and a second call measures nothing."""
    words = [f"images={place / 'made.npz'}", "reference=digits", METRIC, f"paths.cache={place / 'cache'}", "device=cpu"]
    said = succeeded(command("-m", "diffusion.evaluate", *words, f"paths.runs={tmp_path}"))
    out = tmp_path / "images-made" / "metrics.jsonl"
    assert str(out) in said and len(lines(out)) == 1
    assert "already" in succeeded(command("-m", "diffusion.evaluate", *words, f"paths.runs={tmp_path}")) and len(lines(out)) == 1
    two = tmp_path / "two.jsonl"
    succeeded(command("-m", "diffusion.evaluate", *words, f"out={two}", launcher=TORCHRUN))
    assert lines(two)[0]["fd-digits@200"] == pytest.approx(lines(out)[0]["fd-digits@200"], rel=1e-9)
    assert lines(two)[0]["passport"]["reference"]["name"] == "digits"
    words[0] = f"images={place / 'made.npz'},{place / 'real'}"
    said = succeeded(command("-m", "diffusion.evaluate", "-m", *words, f"paths.runs={tmp_path}", "name=two"))
    assert "| images=" in said and (tmp_path / "two.png").is_file()  # of no calls of a denoiser
    words[0] = f"images={place / 'made.npz'}"
    result = command("-m", "diffusion.evaluate", *words, "reference=digitz")
    assert result.returncode == 1 and "reference=digitz is no file and no folder, and dataset=digitz is not one" in result.stderr
    assert result.stderr.count("\n") == 1


BAD = {
    "two things": (["ckpt=exact"], "are two things to measure"),
    "no reference": (["reference=null"], "say reference=cifar10"),
    "no metric": (["metric=none"], "nothing to measure"),
    "a way to sample": (["grid.steps=3"], "grid.steps=3 is for a model"),
    "more than there are": (["metric.n=1000"], "holds 200 images, and metric.n=1000"),
    "an empty word": (["reference="], "reference= names nothing"),
    "no such file": (["reference=gone.npz"], "There is no file or folder gone.npz"),
    "vectors": (["dataset=two_moons", "reference=null"], "looks at pictures"),
    "a metric of models": (["metric=nll_vlb"], "asks a model"),
    "a metric of pairs": (["metric=psnr"], "reconstruction"),
    "lines into statistics": (["out=x.npz"], "say out=FILE.jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_a_sentence(place, tmp_path, case):
    words, sentence = BAD[case]
    with pytest.raises((UserError, ValueError), match=sentence):
        of(place, tmp_path, f"reference={place / 'real'}", *words)


def test_statistics_take_no_other_file_s_place(place, tmp_path):
    """Those of an earlier call are replaced, and nothing else is."""
    cache = f"paths.cache={place / 'cache'}"
    for _ in range(2):
        measured_images(tmp_path / "stats.npz", METRIC, f"reference={place / 'real'}", cache)
    before = (place / "made.npz").read_bytes()
    with pytest.raises(UserError, match="holds no statistics of this command"):
        measured_images(place / "made.npz", METRIC, f"reference={place / 'made.npz'}", cache)
    assert (place / "made.npz").read_bytes() == before


DAMAGED = {
    "a header that is no literal": b"{'descr': '|u1', 'shape': (4,",
    "a header of another type": b"{[]:1}",
    "too deep a header": b"-" * 9000 + b"1",
    "too large an array": b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }",
}


@pytest.mark.parametrize("header", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", ["mu", "arr_0"])
def test_a_file_made_to_break_the_reader_is_a_sentence(place, tmp_path, name, header):
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(f"{name}.npy", content)
        archive.writestr("sigma.npy", content)
    with pytest.raises(UserError, match=r"x\.npz"):
        of(place, tmp_path, f"reference={tmp_path / 'x.npz'}")


def test_what_is_no_statistics_is_a_sentence(place, tmp_path):
    kept = measured_images(tmp_path / "stats.npz", METRIC, f"reference={place / 'real'}", f"paths.cache={place / 'cache'}")
    wrong = {
        "weights ffff, and the metric's are digits": kept | {"weights_hash": np.array("ffff")},
        "of finite numbers": kept | {"sigma": -kept["sigma"]},
        "no mean .* and symmetric": kept | {"sigma": np.triu(kept["sigma"])},
        "holds features, and this metric compares spatial": kept,
    }
    for sentence, arrays in wrong.items():
        np.savez(tmp_path / "x.npz", **arrays)
        metric = "metric=sfid" if "spatial" in sentence else METRIC
        words = ["metric.extractor=DigitsClassifier"] if "spatial" in sentence else []
        with pytest.raises(UserError, match=sentence):
            of(place, tmp_path, f"reference={tmp_path / 'x.npz'}", *words, metric=metric)
    with pytest.raises(UserError, match="a mean and a covariance and no images"):
        of(place, tmp_path, f"reference={tmp_path / 'stats.npz'}", "metric.extractor=DigitsClassifier", metric="metric=precision_recall")
    with pytest.raises(UserError, match="floor=true"):
        of(place, tmp_path, f"reference={tmp_path / 'stats.npz'}", "floor=true")
    cache = f"paths.cache={place / 'cache'}"
    with pytest.raises(UserError, match="holds statistics already"):
        measured_images(tmp_path / "y.npz", METRIC, f"reference={tmp_path / 'stats.npz'}", cache)
    with pytest.raises(UserError, match="compares no mean and covariance"):
        words = ["metric=precision_recall", "metric.extractor=DigitsClassifier"]
        measured_images(tmp_path / "y.npz", *words, f"reference={place / 'real'}", cache)
