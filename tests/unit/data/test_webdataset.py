"""WebDataset shards, written by the library's own writer: what they hold, in which order, and what is wrong with them."""

import io
import json
import sys
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from diffusion.data import ImageFolder, WebDataset
from diffusion.support.errors import UserError

TarWriter = pytest.importorskip("webdataset").TarWriter


def png(red: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (red, 0, 0)).save(file, kind)
    return file.getvalue()


def write(path, *samples):
    path.parent.mkdir(exist_ok=True)
    with TarWriter(str(path)) as writer:
        for i, sample in enumerate(samples):
            writer.write({"__key__": f"{path.stem}/{i:03d}", **sample})


@pytest.fixture
def shards(tmp_path):
    """Two shards, written last first, of five pictures and a sample without any."""
    write(tmp_path / "shards" / "b.tar", {"png": png(90), "txt": b"of b ", "cls": b"2"})
    told = json.dumps({"caption": "told", "other": 1}).encode()
    write(
        tmp_path / "shards" / "a.tar",
        {"png": png(10), "txt": "a sämple".encode(), "json": told, "cls": b"0"},
        {"jpg": png(20, "JPEG"), "cls": b"1\n"},
        {"txt": b"no picture"},
        {"PNG": png(30), "txt": b"", "json": b"{}", "cls": b"1"},
        {"webp": png(40, "WEBP"), "json": b'{"text": "text first", "caption": "?"}', "cls": b"0"},
    )
    return tmp_path / "shards"


@pytest.fixture
def load(shards, tmp_path):
    return lambda **words: WebDataset(**{"root": shards, "cache": tmp_path / "cache", "image_size": 8, **words}).load()


def test_the_order_is_that_of_names_and_of_the_shard(load):
    images = load(num_classes=3)
    assert np.abs(images.images[:, 4, 4, 0].astype(int) - [10, 20, 30, 40, 90]).max() <= 4  # JPEG and WebP are not exact
    assert images.images[[0, 2, 4], 4, 4, 0].tolist() == [10, 30, 90]
    assert images.labels.tolist() == [0, 1, 1, 0, 2] and list(images.captions) == ["a sämple", "", "", "", "of b"]


def test_captions_of_json_and_none(load):
    assert list(load(caption="json").captions) == ["told", "", "", "text first", ""]
    assert load(caption=None).captions is None and load(caption=None).labels is None


def test_one_shard(load, shards):
    assert list(load(root=shards / "b.tar").captions) == ["of b"]


def test_many_samples_come_in_chunks(tmp_path):
    write(tmp_path / "s" / "x.tar", *({"png": png(i % 250), "txt": str(i).encode()} for i in range(300)))
    images = WebDataset(tmp_path / "s", tmp_path / "cache", image_size=4).load()
    assert list(images.captions) == [str(i) for i in range(300)] and images.images[:, 0, 0, 0].tolist() == [i % 250 for i in range(300)]


def test_pixels_are_those_of_a_folder(load, shards, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "x.png")
    write(shards / "c.tar", {"png": (folder / "x.png").read_bytes()})
    theirs = ImageFolder(folder, tmp_path / "cache", image_size=[8, 11]).load()
    assert np.array_equal(load(root=shards / "c.tar", image_size=[8, 11]).images, theirs.images)


def test_a_command_is_no_shard(tmp_path, monkeypatch):
    """The library would run what follows pipe: in a name."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "shards" / "pipe:touch ran.tar", {"png": png(1)})
    monkeypatch.chdir(tmp_path / "shards")
    assert len(WebDataset("pipe:touch ran.tar", tmp_path / "cache", image_size=4).load()) == 1
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["pipe:touch ran.tar"]


def test_a_missing_library_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(UserError, match=r"needs the webdataset library: run pip install -e \.\[webdataset\]"):
        load()


@pytest.mark.parametrize("damage", [lambda content: content[:700], lambda content: b"no tar" * 500, lambda content: b""])
def test_a_damaged_shard_is_named(load, shards, damage):
    (shards / "a.tar").write_bytes(damage((shards / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=r"The shard .*a\.tar cannot be read \(.*bring an undamaged copy"):
        load()


def header(content):
    """One byte of the second file's header is another."""
    second = content.index(b"000.txt")
    return content[: second + 100] + b"x" + content[second + 101 :]


@pytest.mark.parametrize("damage", [header, *(partial(lambda end, content: content[:end], end) for end in (1024, 2048, 3072, 4096))])
def test_a_shard_that_ends_too_early_is_named(load, shards, damage):
    """Between two files it would pass for a shorter one."""
    (shards / "a.tar").write_bytes(damage((shards / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=r"The shard .*a\.tar (is damaged or cut off, |cannot be read )"):
        load()


def test_files_of_a_sample_stand_together(load, shards):
    with tarfile.open(shards / "c.tar", "w") as opened:
        for name, content in (("0.png", png(1)), ("1.png", png(2)), ("0.txt", b"nought"), ("1.txt", b"one")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"The files of 0 in .*c\.tar are not beside each other: sort its files by name"):
        load()


def test_what_was_read_is_said(load, shards, tmp_path, caplog):
    caplog.set_level("INFO")
    load()
    assert "5 samples, 2 with captions; left out: 1 samples without a picture" in caplog.messages
    write(tmp_path / "dots" / "a.tar", {"0.png": png(1), "0.txt": b"a"})
    with pytest.raises(UserError, match=r"No sample of .*dots has a picture .*: name its files as 0001\.png and 0001\.txt"):
        load(root=tmp_path / "dots")


@pytest.mark.parametrize(
    ("sample", "words", "sentence"),
    [
        ({"png": b"no picture"}, {}, r"The picture of z/000 in .*z\.tar cannot be read \(its content is none of"),
        ({"png": png(1), "txt": b"\xe9"}, {}, r"z/000 in .*z\.tar \(\.txt\) is not UTF-8"),
        ({"png": png(1), "json": b"{"}, {"caption": "json"}, r"The \.json of z/000 in .* is no JSON"),
        ({"png": png(1), "json": b'{"text": 7}'}, {"caption": "json"}, r"The \.json of z/000 .* has a caption that is no text, 7"),
        ({"png": png(1)}, {"num_classes": 2}, r"The class of z/000 in .* is '', and \.cls should hold a number from 0 to 1: .*num_classes"),
        ({"png": png(1), "cls": b"2"}, {"num_classes": 2}, r"The class of z/000 in .* is '2'"),
    ],
)
def test_what_is_wrong_with_a_sample_is_one_sentence(load, shards, sample, words, sentence):
    write(shards / "z.tar", sample)
    with pytest.raises(UserError, match=sentence):
        load(root=shards / "z.tar", **words)


def test_settings_that_make_no_sense(load, tmp_path):
    with pytest.raises(UserError, match=r"There is no shard .*nowhere/\*\.tar: point dataset\.root"):
        load(root=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"dataset\.caption=csv is none of the files that hold captions: say txt, json or null"):
        load(caption="csv")
    with pytest.raises(UserError, match=r"dataset\.channels=4 is neither"):
        load(channels=4)
