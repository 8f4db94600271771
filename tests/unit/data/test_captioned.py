"""Captions: kept with the items, hashed with them; and what the composed pictures' captions say is in the pictures."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from composing import composed
from sklearn.datasets import load_digits

from diffusion.data import CaptionedDigits, CaptionedFashion, Dataset, FashionMNIST, Synthetic
from diffusion.data.cache import Chunk, cache_folder
from diffusion.data.captioned import RELATIONS
from diffusion.support.build import build
from diffusion.support.errors import UserError

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ARTICLES = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
# What a reader of English takes each phrase to mean: the places of what is named first and of what is named second.
MEANING = {
    "left of": "left right",
    "to the left of": "left right",
    "right of": "right left",
    "to the right of": "right left",
    "on the left of": "left right",
    "on top of": "above below",
    "above": "above below",
    "over": "above below",
    "below": "below above",
    "under": "below above",
}
CORNERS = {"left": (1, 0), "right": (1, 2), "above": (0, 1), "below": (2, 1)}


@dataclass(frozen=True)
class Words(Dataset):
    """Three points, of which the second has no caption."""

    num_classes: int = 0
    said: tuple[str, ...] = ("a point, “here”", "", "two\nlines")

    name: ClassVar[str] = "words"
    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def captioned(self) -> bool:
        return True

    def key(self) -> Any:
        return self.said

    def read(self) -> tuple[str, Iterator[Chunk]]:
        items = np.arange(6, dtype=np.float32).reshape(3, 2)
        return "here", iter([(items[:2], None, self.said[:2]), (items[2:], None, self.said[2:])])


def test_captions_come_back_as_they_were(tmp_path, monkeypatch):
    made = Words(cache=tmp_path).load()
    monkeypatch.setattr(Words, "read", lambda self: pytest.fail("made again"))
    read = Words(cache=tmp_path).load()
    assert list(made.captions) == list(read.captions) == ["a point, “here”", "", "two\nlines"] and made.sha256 == read.sha256
    assert "a point, “here”" in (cache_folder(Words(cache=tmp_path)) / "captions.json").read_text(encoding="utf-8").splitlines()[1]
    assert Synthetic(cache=tmp_path).load().captions is None


def test_the_hash_covers_the_captions(tmp_path):
    hashes = {Words(cache=tmp_path, said=said).load().sha256 for said in (("a", "b", "c"), ("a", "bc", ""), ("a", "b", "d"))}
    assert len(hashes) == 3


@pytest.mark.parametrize("damage", [lambda text: text[:-4], lambda text: text.replace("here", "gone"), None])
def test_damaged_captions_are_made_again(tmp_path, damage):
    file = cache_folder(Words(cache=tmp_path)) / "captions.json"
    Words(cache=tmp_path).load()
    if damage:
        file.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        file.unlink()
    assert Words(cache=tmp_path).load().captions[2] == "two\nlines"


@pytest.mark.parametrize("said", [("a", "b"), ("a", "b", "c", "d"), ()])
def test_as_many_captions_as_items(tmp_path, said):
    with pytest.raises(UserError, match=r"words gave \d captions to \d items"):
        Words(cache=tmp_path, said=said).load()


def test_a_set_without_captions_says_nothing_of_them(tmp_path):
    """Its folder is that of before there were captions, so that an old cache is as good as a new one."""
    Synthetic(cache=tmp_path).load()
    folder = cache_folder(Synthetic(cache=tmp_path))
    assert sorted(file.name for file in folder.iterdir()) == ["images.u8", "info.json", "labels.npy"]
    assert "captions" not in json.loads((folder / "info.json").read_text())


def told(caption: str, names: dict[str, int]) -> dict[str, int]:
    """Place -> kind, read from a caption without the code's tables."""
    if match := re.fullmatch(r"(.+) (?:on the left|at the top) and (.+) (on the right|at the bottom)", caption):
        first, second, where = match.groups()
        places = "left right" if where == "on the right" else "above below"
    else:
        phrase = max((phrase for phrase in MEANING if f" {phrase} " in caption), key=len)
        (first, second), places = caption.split(f" {phrase} "), MEANING[phrase]
    return dict(zip(places.split(), (names[first], names[second]), strict=True))


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou8" and name != "one" else f"a {name}"


@pytest.mark.parametrize("split", ["train", "test", "heldout"])
def test_digits_are_where_their_captions_say(tmp_path, split):
    """Every picture, pixel by pixel, is made of two of scikit-learn's digits, of the kinds that the caption names, in their places."""
    names = {article(word): kind for kind, word in enumerate(WORDS)} | {article(str(kind)): kind for kind in range(10)}
    bunch = load_digits()
    of_split = (np.arange(len(bunch.target)) % 6 == 0) == (split != "train")
    pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8)[of_split]
    known = {kind: {image.tobytes() for image in pixels[bunch.target[of_split] == kind]} for kind in range(10)}
    data = CaptionedDigits(cache=tmp_path, split=split, n=500).load()
    assert data.images.shape == (500, 16, 16, 1) and len(data.captions) == 500
    for image, caption in zip(data.images[..., 0], data.captions, strict=True):
        rest = image.copy()
        for place, kind in told(caption, names).items():
            row, column = (4 * corner for corner in CORNERS[place])
            assert image[row : row + 8, column : column + 8].tobytes() in known[kind], caption
            rest[row : row + 8, column : column + 8] = 0
        assert not rest.any()
    assert len(set(data.captions)) > 250 and {word for caption in data.captions for word in caption.split()} >= {*WORDS, *"0123456789"}


def test_held_out_scenes_are_never_seen_but_their_parts_are(tmp_path):
    def scenes(split):
        data = CaptionedDigits(cache=tmp_path, split=split, n=20_000)
        return {tuple(int(part) for part in data.scene(int(label))) for label in data.load().labels}

    train, test, held_out = (scenes(split) for split in ("train", "test", "heldout"))
    assert train == test and not train & held_out and len(train | held_out) == 200 and len(held_out) == 20
    for relation in (0, 1):
        for kind in range(10):
            assert {(relation, kind)} <= {scene[:2] for scene in train} and {(relation, kind)} <= {scene[:2] for scene in held_out}
            assert any(scene[0] == relation and scene[2] == kind for scene in train)
            assert any(scene[0] == relation and scene[2] == kind for scene in held_out)


def test_the_same_seed_is_the_same_set(tmp_path):
    first = CaptionedDigits(cache=tmp_path / "a", n=50).load()
    again = CaptionedDigits(cache=tmp_path / "b", n=50).load()
    more = CaptionedDigits(cache=tmp_path / "a", n=50, seed=1).load()
    assert first.sha256 == again.sha256 != more.sha256 and list(first.captions) == list(again.captions)
    # Frozen from this code: the arithmetic is of integers, so the bytes are the same on every machine.
    assert first.sha256.startswith("0631cf6c3e89")


def test_scene_and_number():
    data = CaptionedDigits()
    assert [tuple(data.scene(number)) for number in (0, 7, 30, 125)] == [(0, 0, 0), (0, 0, 7), (0, 3, 0), (1, 2, 5)]


def test_fashion_is_resampled_by_area(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    kinds = np.arange(40) % 10
    monkeypatch.setattr(FashionMNIST, "read", lambda self: ("there", iter([(pictures[:30], kinds[:30]), (pictures[30:], kinds[30:])])))
    # 28 pixels of 4 parts each are 16 pixels of 7 parts.
    parts = pictures[..., 0].repeat(4, 1).repeat(4, 2).reshape(40, 16, 7, 16, 7).astype(np.float64)
    small = np.rint(parts.mean((2, 4))).astype(np.uint8)
    known = {kind: {image.tobytes() for image in small[kinds == kind]} for kind in range(10)}
    names = {article(word): kind for kind, word in enumerate(ARTICLES)} | {"trousers": 1, "a pair of trousers": 1}
    for split in CaptionedFashion.splits:
        data = CaptionedFashion(cache=tmp_path, n=60, split=split).load()
        assert data.images.shape == (60, 32, 32, 1)
        for image, caption in zip(data.images[..., 0], data.captions, strict=True):
            for place, kind in told(caption, names).items():
                row, column = (8 * corner for corner in CORNERS[place])
                assert image[row : row + 16, column : column + 16].tobytes() in known[kind], caption


def test_without_its_classes_a_set_keeps_its_captions(tmp_path):
    data = replace(CaptionedDigits(cache=tmp_path, n=20), num_classes=0).load()
    assert data.labels is None and len(data.captions) == 20


@pytest.mark.parametrize("word", ["captioned_digits", "captioned_fashion", "captioned_fashion network=captioned_fashion"])
def test_what_a_captioned_set_brings_fits_together(word):
    """Network, conditions and metric: a network of the data's size that looks at what the encoder makes, and a metric of the same data."""
    config = composed(f"dataset={word.split()[0]}", *word.split()[1:], "paths.cache=c")
    encoder = config["conditions"]["encoder"]
    side, told = config["dataset"]["image_size"], {"in_channels": 1, "out_channels": 2, "num_classes": 0}
    told |= {"image_size": side, "context_channels": encoder["channels"], "pooled": encoder["pooled"]}
    network = build(config["network"], "network", told)
    cond = torch.randn(1, encoder["length"], encoder["channels"])
    assert network(torch.zeros(1, 1, side, side), torch.zeros(1), cond).shape == (1, 2, side, side)
    (metric,) = config["metric"].values()
    assert metric["scenes"]["_target_"] == config["dataset"]["_target_"]
    assert max(len(caption.split()) for caption in longest(config["dataset"])) < encoder["length"]


def longest(dataset: dict) -> list[str]:
    """Each phrase with the longest names of the set."""
    made = build(dataset)
    name = max((name for names in made.kinds for name in names), key=lambda name: len(name.split()))
    return [phrase.format(name, name) for relation in RELATIONS for phrase in relation.phrases]
