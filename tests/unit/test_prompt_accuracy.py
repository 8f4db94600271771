"""metric=prompt_accuracy: what it counts, of which images, beside what."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from diffusion.conditions import Classes, Text, Unconditional, Words
from diffusion.data import Synthetic
from diffusion.data.base import PictureDataset
from diffusion.data.cache import Chunk
from diffusion.data.captioned import Captioned
from diffusion.evaluation.measure import measure
from diffusion.evaluation.subjects import Drawn
from diffusion.metrics import PromptAccuracy, base, objects
from diffusion.support.errors import UserError


@dataclass(frozen=True)
class Grey(PictureDataset):
    """Eight pictures of each of eight greys, with a little noise."""

    image_size: int = 4
    channels: int = 1
    num_classes: int = 8

    name: ClassVar[str] = "grey"

    def key(self) -> Any:
        return []

    def read(self) -> tuple[str, Iterator[Chunk]]:
        kinds = np.arange(64) % 8
        noise = np.random.default_rng(0).integers(0, 8, (64, 4, 4, 1))
        return "here", iter([((20 + 30 * kinds[:, None, None, None] + noise).astype(np.uint8), kinds)])


@dataclass(frozen=True)
class Greys(Captioned):
    image_size: int = 8
    channels: int = 1
    num_classes: int = 128
    n: int = 600

    name: ClassVar[str] = "greys"
    kinds: ClassVar = tuple((f"a grey{kind}",) for kind in range(8))

    def single(self) -> PictureDataset:
        return Grey()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The cache, with a classifier that was trained there in a moment: greys are told apart easily."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "STEPS", 400)
        objects.SceneClassifier(Greys(cache=cache), cache)
    return cache


@pytest.fixture
def metric(places):
    def made(n: int = 200, groups: int = 0) -> PromptAccuracy:
        metric = PromptAccuracy(Greys(cache=places), n, places, groups)
        metric.setup(Greys(cache=places).load(), "cpu", TEXT)
        return metric

    return made


TEXT = Text(Words(vocabulary="a left of"))


def pictures(metric, n: int) -> tuple[torch.Tensor, list[str]]:
    """Real pictures of what the metric asks images 0..n-1 for, with their captions."""
    splits = [metric.scenes.of_split(split) for split in ("test", "heldout")]
    of = [(splits[i % 2], i // 2) for i in range(n)]
    return torch.stack([torch.from_numpy(data.images[j]) for data, j in of]), [data.captions[j] for data, j in of]


def test_real_pictures_are_right_and_mirrored_ones_are_in_the_wrong_places(metric):
    metric = metric()
    images, captions = pictures(metric, 200)
    assert list(metric.asks(TEXT).prompts) == captions
    metric.update(images[:77])
    metric.update(images[77:])
    assert set(metric.numbers().values()) == {1.0} and min(metric.real) > 0.99
    metric.reset()
    metric.update(torch.rot90(images, 2, (1, 2)))  # the two objects in each other's places
    numbers = metric.numbers()
    kinds = [set(re.findall(r"grey\d", caption)) for caption in captions]
    assert all(len(kind) == 2 for kind in kinds[1::2])  # none of the held-out scenes has two of a kind
    assert numbers["prompt-objects@200"] == numbers["heldout-objects@200"] == 1.0
    assert numbers["prompt-places@200"] == pytest.approx(np.mean([len(kind) == 1 for kind in kinds[::2]]))
    assert numbers["heldout-places@200"] == 0.0


def test_other_objects_are_wrong(metric):
    """Of each prompt the picture of another one, two further on: what is right is counted by hand from the layouts."""
    metric = metric()
    images, _ = pictures(metric, 200)
    metric.update(images.roll(2, 0))
    numbers = metric.numbers()
    layouts = metric.scenes.layouts()
    for start, word in ((0, "prompt"), (1, "heldout")):
        data = metric.scenes.of_split(["test", "heldout"][start])
        asked = data.labels[:100]
        found = np.roll(asked, 1)
        assert numbers[f"{word}-places@200"] == pytest.approx(np.mean(asked == found))
        bags = [[sorted(layouts[scene]) for scene in scenes] for scenes in (asked, found)]
        assert numbers[f"{word}-objects@200"] == pytest.approx(np.mean([a == b for a, b in zip(*bags, strict=True)]))


def test_chance_is_that_of_all_other_pairs(metric):
    metric = metric(40)
    images, _ = pictures(metric, 40)
    metric.update(images)
    metric.numbers()
    layouts = metric.scenes.layouts()
    for start, word in ((0, "prompt"), (1, "heldout")):
        scenes = metric.scenes.of_split(["test", "heldout"][start]).labels[:20]
        pairs = list(permutations(range(20), 2))
        same = np.mean([scenes[i] == scenes[j] for i, j in pairs])
        alike = np.mean([sorted(layouts[scenes[i]]) == sorted(layouts[scenes[j]]) for i, j in pairs])
        assert metric.facts()[f"{word}-places@40/chance"] == pytest.approx(same)
        assert metric.facts()[f"{word}-objects@40/chance"] == pytest.approx(alike)
    json.dumps(metric.facts(), allow_nan=False)


def test_the_error_is_that_of_the_groups_means(metric):
    """With equal groups the jackknife of a mean is the standard deviation of the groups' means over the root of their number."""
    metric = metric(200, groups=10)
    images, _ = pictures(metric, 200)
    wrong = torch.from_numpy(np.random.default_rng(0).random(200) < 0.3)
    metric.update(torch.where(wrong[:, None, None, None], 0, images))  # black all over
    numbers = metric.numbers()
    right = (~wrong.numpy()).astype(float)[::2].reshape(10, 10)  # seen image j is dealt to group j mod 10
    assert numbers["prompt-places@200"] == pytest.approx(right.mean(), abs=0.02)  # a black picture may be right by chance
    assert numbers["prompt-places@200/error"] == pytest.approx(right.mean(0).std(ddof=1) / 10**0.5, rel=0.1)
    assert "jackknife with 10 groups" in metric.passport()["intervals"]["error"]


def test_it_asks_its_own_questions_and_other_metrics_the_models(metric, places):
    """Two metrics at once: this one's images are asked for by its prompts, the other's as the recipe asks, and each passport says which."""
    seen: dict[str, list] = {"usual": [], "own": []}

    @dataclass(frozen=True)
    class Recipe(Drawn):
        def __call__(self, seeds, cond=None):
            seen["own" if self.conditions.prompts else "usual"] += cond.tolist()
            return super().__call__(seeds, None)

    class Count(type(metric())):
        def __init__(self):
            self.name, self.n = "count@6", 6

        def asks(self, conditions):
            return conditions

        def numbers(self):
            return {self.name: 1.0}

        def update(self, images, labels=None):
            assert len(images) == len(labels)

        def reset(self):
            pass

        def passport(self):
            return {**ours.passport(), "metric": self.name}

    text = Text(Words(vocabulary="a left of grey1"), captions=["a", "left"])
    ours = metric(8)
    model = type("Model", (), {"denoiser": None, "codec": None, "conditions": text})()
    recipe = Recipe(ours.scenes.of_split("train"), text, batch_size=4)
    facts = {"ema": None, "step": 0, "weights": None}
    results = list(measure(model, recipe, [ours, Count()], facts))
    assert seen["usual"] == text.encoder.encode(["a", "left"] * 3).tolist()
    assert seen["own"] == text.encoder.encode(pictures(ours, 8)[1]).tolist()
    told = {one.name: passport.conditions["prompts"] for one, _, passport in results}
    assert told["prompt-places@8"]["count"] == 8 and told["count@6"]["count"] == 2


@pytest.mark.parametrize("conditions", [Classes(128), Unconditional()])
def test_a_model_that_is_not_asked_by_texts_is_refused(places, conditions):
    metric = PromptAccuracy(Greys(cache=places), 8, places)
    with pytest.raises(UserError, match=r"prompt-places@8 asks by prompts, .*say metric=none, or conditions=text"):
        metric.setup(Greys(cache=places).load(), "cpu", conditions)


def test_other_data_are_refused(places, tmp_path):
    with pytest.raises(UserError, match=r"prompt-places@8 asks for the scenes of greys, and the data are synthetic: leave"):
        PromptAccuracy(Greys(cache=places), 8, places).setup(Synthetic(cache=tmp_path).load(), "cpu", TEXT)


@pytest.mark.parametrize(("n", "groups", "sentence"), [(3, 0, r"metric\.n=3 is too few"), (40, 11, r"metric\.groups=11 cannot")])
def test_too_few_images_are_refused(places, n, groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        PromptAccuracy(Greys(cache=places), n, places, groups)


def test_the_classifier_is_the_same_every_time_and_leaves_the_random_state(places, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "STEPS", 5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again = (objects.SceneClassifier(Greys(cache=places), tmp_path / name) for name in "ab")
    assert first.weights_hash == again.weights_hash and torch.equal(torch.get_rng_state(), state)
    assert objects.SceneClassifier(Greys(cache=places), tmp_path / "a").weights_hash == first.weights_hash


def test_images_dealt_to_ranks_are_each_compared_with_their_own_prompt(metric, monkeypatch):
    """Image i is on rank i mod 3: `gather_dealt`, which is tried on real processes elsewhere, puts their rows back into order."""
    ranks, whole = [metric(50) for _ in range(3)], metric(50)
    images, _ = pictures(whole, 50)
    images[7:20] = images.roll(2, 0)[7:20]
    whole.update(images)
    for rank, one in enumerate(ranks):
        one.update(images[rank::3])

    def gathered(rows):
        found = torch.empty(50, dtype=rows.dtype)
        for rank, one in enumerate(ranks):
            found[rank::3] = torch.cat(one.found)
        return found

    expected = whole.numbers()
    monkeypatch.setattr(base, "gather_dealt", gathered)
    for one in ranks:
        one.distributed_available_fn = lambda: True  # of torchmetrics
    assert all(one.numbers() == expected for one in ranks) and 0 < expected["prompt-places@50"] < 1


def test_the_same_metric_of_more_images(metric):
    larger = metric(8).resized(20)
    images, captions = pictures(larger, 20)
    assert list(larger.asks(TEXT).prompts) == captions and larger.name == "prompt-places@20"
    larger.update(images)
    assert larger.numbers()["prompt-places@20"] == 1.0
    with pytest.raises(ValueError, match=r"prompt-places@20 is a number of 20 images, and 40 were given"):
        larger.update(images)
        larger.numbers()
