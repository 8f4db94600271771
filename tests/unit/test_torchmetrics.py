"""Our metrics are torchmetrics': in its collections, in a foreign loop, cast, copied and merged, with every promise kept."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torchmetrics
from documents import ROOT, blocks
from torch import nn

import diffusion.metrics as ours
from diffusion.metrics import DigitsClassifier, FrechetDistance, KernelDistance, PrecisionRecall, SlicedWasserstein
from diffusion.metrics.extractors.digits import digits


class Images:
    name, split, sha256, labels = "digits", "train", "ab" * 32, None

    def __init__(self):
        self.images = ((digits()[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()[:300]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def made():
    noise = torch.randint(0, 64, (120, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.from_numpy(Images().images[:120]) // 2 + noise


KINDS = {
    "fd": lambda cache, n: FrechetDistance(DigitsClassifier(cache=cache), n, cache),
    "kd": lambda cache, n: KernelDistance(DigitsClassifier(cache=cache), n, cache, subset_size=50, subsets=5),
    "pr": lambda cache, n: PrecisionRecall(DigitsClassifier(cache=cache), n, cache),
    "sw": lambda cache, n: SlicedWasserstein(n, groups=0),
}


@pytest.fixture
def make(cache):
    def ready(kind, n=120):
        metric = KINDS[kind](cache, n)
        metric.setup(Images(), "cpu")
        return metric

    return ready


def alone(metric, made):
    metric.update(made)
    return metric.numbers()


def test_every_metric_is_one_of_torchmetrics():
    kinds = [kind for kind in map(ours.__dict__.get, ours.__all__) if isinstance(kind, type) and issubclass(kind, ours.Metric)]
    assert len(kinds) >= 15 and all(issubclass(kind, torchmetrics.Metric) for kind in kinds)


def test_in_a_collection_they_give_the_numbers_that_they_give_alone(make, made):
    """The collection finds that the rows of two of them are the same, and updates one for both."""
    collection = torchmetrics.MetricCollection([make(kind) for kind in KINDS])
    for _ in range(2):  # and again after reset
        for chunk in made.split(50):
            collection.update(chunk)
        found = {key: value.item() for key, value in collection.compute().items()}
        collection.reset()
    expected = {}
    for kind in KINDS:
        numbers = alone(make(kind), made)
        expected |= numbers if len(numbers) > 1 else {type(make(kind)).__name__: next(iter(numbers.values()))}
    assert found == pytest.approx(expected, rel=1e-6)


def test_metrics_of_two_networks_are_apart_from_an_empty_batch_on(cache, made):
    """A collection takes metrics with equal states for one, and before the first image all are equal."""
    other = DigitsClassifier(cache=cache)
    other.network = copy.deepcopy(other.network)
    for weights in other.network.parameters():
        weights.data.mul_(1.1)
    other.weights_hash, expected = "1" * 16, {}
    collection = torchmetrics.MetricCollection({})
    for name, extractor in (("one", DigitsClassifier(cache=cache)), ("two", other)):
        metric = FrechetDistance(extractor, 120, cache)
        metric.setup(Images(), "cpu")
        expected[name] = alone(copy.copy(metric), made)["fd-digits@120"]
        metric.reset()
        collection.add_metrics({name: metric})
    for chunk in (made[:0], made):
        collection.update(chunk)
    assert {key: value.item() for key, value in collection.compute().items()} == pytest.approx(expected, rel=1e-6)
    assert expected["one"] != pytest.approx(expected["two"], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_summed_stays_in_its_type(make, made, kind):
    """Whatever the module that a metric is in is cast to."""
    holder = nn.Module()
    holder.metric = make(kind)
    holder.to(torch.bfloat16).half().to("cpu")
    expected = alone(make(kind), made)
    assert alone(holder.metric, made) == expected
    assert not holder.state_dict() and not list(holder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_its_own(make, made, kind):
    metric = make(kind)
    metric.update(made[:70])
    other, resized = copy.deepcopy(metric), metric.resized(40)
    unpickled = pickle.loads(pickle.dumps(metric))
    expected, small = alone(make(kind), made), alone(make(kind, 40), made[:40]) if kind != "kd" else None
    for each in (other, unpickled, metric):
        assert alone(each, made[70:]) == pytest.approx(expected, rel=1e-6)
    if small is not None:
        assert alone(resized, made[:40]) == pytest.approx(small, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_two_shares_merge_to_the_whole(make, made, kind):
    first, second = make(kind), make(kind)
    first.update(made[:33])
    second.update(made[33:])
    second.merge_state(first)
    assert second.numbers() == pytest.approx(alone(make(kind), made), rel=1e-6)


def test_a_batch_has_no_number_of_its_own(make, made):
    metric = make("fd")
    assert metric(made[:50]) is None and metric(made[50:]) is None
    assert metric.numbers() == pytest.approx(alone(make("fd"), made), rel=1e-6)


def test_without_real_images_there_is_a_sentence(cache, made):
    with pytest.raises(ValueError, match="call setup"):
        KINDS["fd"](cache, 120).update(made)


def test_the_foreign_loop_of_the_documents(tmp_path, monkeypatch):
    """Its numbers fall as it learns."""
    (code,) = blocks((ROOT / "docs" / "torchmetrics.md").read_text(), "python")
    monkeypatch.chdir(tmp_path)
    said = {}
    exec(code, said)
    found = {key: float(value) for key, value in said["trainer"].callback_metrics.items()}
    assert set(found) == {"fd-digits@500", "fd-digits@500/error", "kd-digits@500", "kd-digits@500/std"}
    untrained = said["VAE"]()
    untrained.on_fit_start()
    said["trainer"].validate(untrained, [250, 250], verbose=False)
    before = said["trainer"].callback_metrics["fd-digits@500"].item()
    assert all(np.isfinite(value) for value in found.values()) and 0 < found["fd-digits@500/error"] < found["fd-digits@500"] < 0.9 * before
