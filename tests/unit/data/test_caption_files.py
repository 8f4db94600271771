"""The captions of a folder's pictures: in Hugging Face's imagefolder layout, as .txt files, and what is wrong with them."""

import json
import os
import re

import pytest
from PIL import Image

from diffusion.data import ImageFolder
from diffusion.support.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for i, name in enumerate(["a.png", "b.png", "more/c.png", "more/d.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (60 * i, 0, 0)).save(root / name)
    return root


@pytest.fixture
def load(folder, tmp_path):
    return lambda **words: ImageFolder(folder, tmp_path / "cache", image_size=8, labelled=False, **words).load()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_metadata_jsonl(folder, load, caplog):
    (folder / "metadata.jsonl").write_text(
        lines({"file_name": "more/d.png", "text": " a “d” "}, {"file_name": "a.png", "text": "comma, here", "id": 3}) + "\n"
        '{"file_name": "./b.png", "text": null}\n',
    )
    with caplog.at_level("INFO"):
        images = load()
    assert list(images.captions) == ["comma, here", "", "", "a “d”"]
    assert [int(image[0, 0, 0]) for image in images.images] == [0, 60, 120, 180]
    assert re.search(r"has 4 images, without classes, with captions of 2\.$", caplog.text.strip())


def test_metadata_csv_of_each_folder(folder, load):
    (folder / "metadata.csv").write_text('file_name,text,tag\nb.png,"two\nlines, ""quoted""",x\n')
    (folder / "more" / "metadata.csv").write_bytes("\ufefffile_name,text\r\nc.png,ünd\r\n".encode())
    assert list(load().captions) == ["", 'two\nlines, "quoted"', "ünd", ""]


def test_another_column(folder, load):
    (folder / "metadata.jsonl").write_text(lines({"file_name": "a.png", "text": "no", "prompt": "yes"}))
    first, other = load(), load(caption="prompt")
    assert (first.captions[0], other.captions[0]) == ("no", "yes") and first.sha256 != other.sha256


def test_texts_beside_the_pictures(folder, load, caplog):
    (folder / "a.txt").write_text("an a\n")
    (folder / "more" / "d.txt").write_text("a d")
    (folder / "README.txt").write_text("no caption")
    with caplog.at_level("INFO"):
        assert list(load().captions) == ["an a", "", "", "a d"]
    assert "with captions of 2; left out: 1 .txt file (README.txt)." in caplog.text


def test_metadata_goes_before_texts(folder, load):
    (folder / "a.txt").write_text("not this")
    (folder / "metadata.jsonl").write_text(lines({"file_name": "a.png", "text": "this"}))
    assert load().captions[0] == "this"


def test_a_changed_caption_makes_another_cache(folder, load):
    without = load()
    (folder / "a.txt").write_text("an a")
    first = load()
    (folder / "a.txt").write_text("an b")
    os.utime(folder / "a.txt", (1, 1))
    assert without.captions is None and len({without.sha256, first.sha256, load().sha256}) == 3 and load().captions[0] == "an b"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metadata.jsonl", lines({"file_name": "x.png", "text": "?"}), r"are of x\.png, which are no pictures there: correct file_name"),
        ("more/metadata.jsonl", lines({"file_name": "a.png", "text": "?"}), r"are of more/a\.png, which are no pictures"),
        ("metadata.jsonl", lines({"file_name": "../images/a.png", "text": "?"}), r"are of \.\./images/a\.png, which"),
        ("metadata.jsonl", lines(*({"file_name": f"{i}.png", "text": ""} for i in range(5))), r"are of 0\.png, 1\.png, 2\.png and 2 more,"),
        (
            "metadata.jsonl",
            lines({"file_name": "a.png", "caption": "?"}),
            r"Line 1 of .* has no text but file_name, caption: .*dataset\.cap",
        ),
        ("metadata.csv", "image,text\na.png,?\n", r"Row 1 of .*metadata\.csv has no file_name but image, text"),
        (
            "metadata.jsonl",
            lines({"file_name": "a.png", "text": "1"}, {"file_name": "a.png", "text": "2"}),
            r"Line 2 .* a\.png a second time",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text"', r"Line 1 of .*metadata\.jsonl is no JSON \("),
        ("metadata.jsonl", '["a.png", "?"]', r"Line 1 of .* is no JSON object"),
        ("metadata.jsonl", lines({"file_name": "a.png", "text": 7}), r"Line 1 of .* a caption that is no text, 7: .*dataset\.caption"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "\\ud800"}', r"a caption that is no text"),
        ("metadata.csv", b"file_name,text\na.png,\xe9t\xe9\n", r"metadata\.csv is not UTF-8 \(the byte 0xe9 at 21\): save"),
        (
            "metadata.csv",
            "file_name,text\na.png,a red, blue thing\n",
            r"Row 1 of .*csv has 3 columns, .*captions with commas between quotes",
        ),
        ("metadata.csv", "file_name,text\nb.png,b\na.png\n", r"Row 2 of .*csv has 1 columns, and its first line names file_name, text"),
        ("metadata.csv", "file_name,text,text\na.png,b,c\n", r"Row 1 of .*csv has 3 columns, .*: name each once"),
        ("metadata.csv", 'file_name,text\na.png,"open\n', r"metadata\.csv is no CSV \(unexpected end of data\)"),
        ("a.txt", b"\xff\xfea", r"a\.txt is not UTF-8 \(the byte 0xff at 0\)"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, load, name, content, sentence):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence) as error:
        load()
    assert "\n" not in str(error.value)
