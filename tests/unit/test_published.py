"""What papers measured beside our numbers: the files are sound, and each difference that forbids a comparison is said with its remedy."""

import json
import pickle
import re

import pytest
import yaml
from composing import ROOT, composed

from diffusion.evaluation import tables
from diffusion.metrics import InceptionV3
from diffusion.published import ALIKE, METRICS, Published, headline, results_of
from diffusion.support.errors import UserError

FILES = sorted((ROOT / "conf/published").glob("*.yaml"))
FILE = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
RUN = {
    "dataset": {"image_size": 32},
    "conditions": {"_target_": "diffusion.conditions.Unconditional"},
    "published": FILE["ddpm_cifar10"],
}
PASSPORT = {
    "metric": "fid@50k",
    "n": 50_000,
    "extractor": {"name": "inception", "weights_hash": "abc", "dim": 2048, "resize": InceptionV3.resize},
    "reference": {"name": "cifar10", "split": "train", "n": 50_000, "sha256": "0"},
    "sampler": {"name": "DDPM", "variance": "fixed_large", "grid": {"name": "Trailing", "steps": 1000}},
    "guidance": None,
    "nfe": 1000,
}


def beside(key="fid@50k", passport=PASSPORT, run=RUN):
    return Published.of(run["published"], run).beside(key, passport)


@pytest.mark.parametrize("name", FILE)
def test_a_file_is_sound(name):
    """Its numbers are read, each of a metric of ours, of a positive size, and those of one metric, way, model and place once."""
    results = results_of(FILE[name])
    assert (not results) == (name == "none")
    places = [(r.metric, r.model, r.way, r.conditions, r.where, r.split) for r in results]
    assert len(set(places)) == len(places)
    assert all(r.value > 0 and r.metric in METRICS and (r.extractor or r.metric.startswith("nll")) for r in results)
    assert all(re.search(r"table|section|abstract", r.where) for r in results)


def test_the_numbers_that_everyone_knows():
    """Those of the abstracts, of the arXiv papers' own pages."""

    def values(name, **said):
        return {r.value for r in results_of(FILE[name]) if all(getattr(r, key) == value for key, value in said.items())}

    assert 3.17 in values("ddpm_cifar10", metric="fid", n=50_000, split="train") and 9.46 in values("ddpm_cifar10", metric="is")
    assert min(values("edm_cifar10", conditions="none")) == 1.97 and min(values("edm_cifar10", conditions="classes")) == 1.79
    assert 2.2 in values("score_sde_ve_cifar10", metric="fid") and 9.89 in values("score_sde_ve_cifar10", metric="is")
    assert 2.27 in values("dit_imagenet256", metric="fid") and 1.81 in values("edm2_imagenet512", metric="fid")
    assert {2.07} <= values("adm_imagenet64", metric="fid") and 1.36 in values("edm_imagenet64", metric="fid")


@pytest.mark.parametrize("name", [name for name in FILE if name.startswith("ddim_")])
def test_ddims_table_is_whole(name):
    """Its 25 cells; more steps are better in each row, and so is a smaller eta in each column of fewer than 1000."""
    cells = {(r.sampler.get("eta", "sigma"), r.steps): r.value for r in results_of(FILE[name])}
    etas, steps = [0.0, 0.2, 0.5, 1.0, "sigma"], [10, 20, 50, 100, 1000]
    assert cells.keys() == {(eta, s) for eta in etas for s in steps}
    rows, columns = [[cells[eta, s] for s in steps] for eta in etas], [[cells[eta, s] for eta in etas] for s in steps[:-1]]
    assert all(row == sorted(row, reverse=True) for row in rows) and all(column == sorted(column) for column in columns)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_names_what_is_there_or_nothing(path):
    """And one of digits nothing: no paper measured them."""
    named = re.findall(r"override /published: (\w+)", path.read_text())
    config = composed(f"experiment={path.stem}")
    assert bool(config["published"]) == bool(named) and len(named) <= 1
    assert not (named and "digits" in path.stem)
    if named:
        assert config["published"] == FILE[named[0]] and headline(config["published"])


@pytest.mark.parametrize("name", [name for name in FILE if name.endswith("_cifar10")])
def test_a_file_is_of_the_data_that_its_name_says(name):
    assert {(r.dataset, r.image_size) for r in results_of(FILE[name])} == {("cifar10", 32)}


def test_the_same_way_is_comparable_and_stands_alone():
    (found,) = beside()
    assert found.comparable and found.against == () and found.distance == 0 and found.result.value == 3.17
    assert "ours: torch-fidelity's PyTorch port of TensorFlow's weights (abc)" in str(found) and ": comparable;" in str(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 5000}, "number of images 50,000 there, 5,000 here (metric.n=50000)"),
        ({"extractor": {"name": "resnet56", "resize": "none"}}, "extractor inception there, resnet56 here (metric=fid)"),
        ({"extractor": PASSPORT["extractor"] | {"resize": "bicubic"}}, "resize TensorFlow 1 bilinear to 299x299 there, bicubic here"),
        ({"reference": PASSPORT["reference"] | {"name": "svhn"}}, "data set cifar10 there, svhn here (dataset=cifar10)"),
        ({"reference": PASSPORT["reference"] | {"split": "test"}}, "split train there, test here (dataset.split=train)"),
        ({"reference": PASSPORT["reference"] | {"n": 45_000}}, "number of real images 50,000 there, 45,000 here"),
    ],
    ids=["n", "extractor", "resize", "dataset", "split", "real"],
)
def test_each_difference_forbids_and_is_mended(change, said):
    (found,) = beside("fd-resnet56@50k" if "resnet" in said else "fid@50k", PASSPORT | change)
    assert found.against == (said,) and not found.comparable and f"not comparable: {said}" in str(found)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"dataset": {"image_size": 64}}, "image size 32 there, 64 here (dataset.image_size=32)"),
        (
            {"conditions": {"_target_": "diffusion.conditions.Classes", "num_classes": 10}},
            "conditions of the model none there, classes here (a training with conditions=none)",
        ),
    ],
    ids=["image_size", "conditions"],
)
def test_what_the_run_says_forbids_too(run, said):
    (found,) = beside(run=RUN | run)
    assert found.against == (said,)


def test_every_field_of_the_comparison_is_tried():
    """The two tests above, field by field."""
    tried = [name for test in (test_each_difference_forbids_and_is_mended, test_what_the_run_says_forbids_too) for name in marks(test)]
    assert sorted(tried) == sorted(ALIKE)


def marks(test):
    return test.pytestmark[0].kwargs["ids"]


def test_another_way_to_sample_forbids_nothing():
    """It is said; the most alike goes first."""
    found = beside(passport=PASSPORT | {"sampler": {"name": "DDIM", "eta": 0.0, "grid": {"steps": 50}}, "seeds": [1], "precision": "bf16"})
    assert [c.comparable for c in found] == [True, True, False] and all("sampled in another way" in str(c) for c in found)
    ddim = RUN | {"published": FILE["ddim_cifar10"]}
    (found,) = beside(passport=PASSPORT | {"sampler": {"name": "DDIM", "eta": 0.5, "grid": {"steps": 50}}}, run=ddim)
    assert found.result.value == 5.25 and "the paper does not say: resize, split, number of real images" in str(found)


def test_what_is_not_known_is_perhaps():
    """Of the paper (no number of images), and of ours (a reference by statistics of another program's)."""
    found = beside(run=RUN | {"published": FILE["iddpm_cifar10"]})
    assert {c.comparable for c in found} == {False} and all(c.against == () and "perhaps comparable" in str(c) for c in found)
    statistics = {"name": "x.npz", "split": "not said by the file", "n": None, "sha256": "1", "file": "mean and covariance"}
    found = beside(passport=PASSPORT | {"reference": statistics})[0]
    assert found.against == () and not found.comparable and "not known of ours: data set, split, number of real images" in str(found)


def test_metrics_are_not_mixed():
    """Of a score that looks at no real image nothing is said of them; an error, an extrapolation and another metric have nothing beside."""
    (score,) = beside("is@50k", PASSPORT | {"reference": PASSPORT["reference"] | {"n": 0}})
    assert score.result.metric == "is" and score.comparable and "real" not in str(score)
    assert beside("fid@50k/error") == beside("fid-infinity@50k") == beside("kid@50k") == beside("sfid@50k") == []
    likelihood = {"n": 1000, "extractor": {}, "reference": {"name": "cifar10", "split": "test", "n": 1000}}
    found = beside("nll-vlb@1k", likelihood)[0]
    assert found.against[0] == "number of images 10,000 there, 1,000 here (metric.images=10000)"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("word", "published has no list of results"),
        ({"arxiv": "2006.11239"}, "published has no list of results"),
        ({"results": [{"metric": "fid"}]}, "a number without value"),
        ({"results": ["fid"]}, "published.results says nothing"),
        ({"arxiv": 2006.1, "where": "table 1", "results": [{"metric": "fid", "value": 3}]}, "published.arxiv=2006.1 should be of type str"),
        ({"arxiv": "<b>", "where": "t", "results": [{"metric": "fid", "value": 3}]}, "is not the number of a paper"),
        ({"arxiv": "2006.11239", "where": "t", "results": [{"metric": "fyd", "value": 3}]}, "published.metric=fyd is not one of fid"),
        ({"arxiv": "2006.11239", "where": "t", "n": 0, "results": [{"metric": "fid", "value": 3}]}, "published.n=0 must be between 1"),
        ({"arxiv": "2006.11239", "where": "t", "valu": 1, "results": [{"metric": "fid", "value": 3}]}, "did you mean value"),
        ({"arxiv": "2006.11239", "where": "t", "sampler": "ddim", "results": [{"metric": "fid", "value": 3}]}, "published.sampler"),
        ({"arxiv": "2006.11239", "where": "t", "results": [{"metric": "fid", "value": float("nan")}]}, "published.value=nan must be"),
    ],
)
def test_a_bad_file_is_a_sentence(said, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        results_of(said)


def test_what_is_inside_of_a_list_of_lists_is_common_to_it():
    inner = {"n": 10, "results": [{"value": 1.0}, {"value": 2.0, "n": 5}]}
    results = results_of({"arxiv": "2006.11239", "where": "t", "metric": "fid", "n": 7, "results": [{"value": 3.0}, inner]})
    assert [(r.value, r.n) for r in results] == [(3.0, 7), (1.0, 10), (2.0, 5)]


def test_a_passport_of_anything_is_read():
    """A dashboard's comes from anywhere; and what a command hands to its table travels between processes."""
    for passport in ({}, {"n": "x", "extractor": 3, "reference": [], "sampler": "y"}, {"sampler": {"grid": 4}, "reference": {"n": {}}}):
        assert beside(passport=passport)
    assert pickle.loads(pickle.dumps(Published.of(RUN["published"], RUN))) == Published.of(RUN["published"], RUN)
    assert beside(run={"published": None}) == [] == beside(run={"published": {}})
    odd = {"arxiv": "2006.11239", "where": "t", "metric": "fid", "value": 1.0, "sampler": {"name": {"a": 1}, "b": [2]}}
    assert "{'a': 1} b=[2]" in str(beside(run={"published": {"results": [odd]}})[0])


def test_a_table_lists_them_below(tmp_path):
    """Beside the lines of the run that names them, each number once; and in the CSV's last column."""
    path = tmp_path / "cells.jsonl"
    facts = {"way": "sampler", "metric": "fid@5k", "seconds": 1.0, "words": {"sampler": "ddim"}}
    passport = PASSPORT | {"n": 5000, "id": "ab", "code": "0"}
    cells = [
        {
            "cell": {"a": i},
            "ckpt": ckpt,
            "fid@5k": 4.0 + i,
            "passport": passport | {"sampler": {"name": "DDIM", "eta": 0.0, "grid": {"steps": s}}},
        }
        for i, (ckpt, s) in enumerate([("runs/a", 10), ("runs/a", 50), ("runs/b", 100)])
    ]
    path.write_text("".join(json.dumps(facts | cell) + "\n" for cell in cells))
    named = {"runs/a": Published.of(FILE["ddim_cifar10"], RUN)}
    text = tables.save(path, "the command", published=named)
    listed = [line for line in text.splitlines() if line.startswith("* ")]
    assert [line.split(" of ")[0] for line in listed] == ["* fid 13.36", "* fid 4.67"]
    assert all("not comparable: number of images 50,000 there, 5,000 here (metric.n=50000)" in line for line in listed)
    assert "fid 13.36" in path.with_suffix(".csv").read_text() and "Published" not in tables.save(path, "the command")
