"""What the words of a command ask for: classes, a text, a file of texts; and how a picture names its texts."""

import pytest
import torch
from composing import composition

from diffusion.conditions import Classes, Text, TextEncoder, Unconditional
from diffusion.conditions.asking import wish
from diffusion.config import escaped, unescaped
from diffusion.pictures import show, tile
from diffusion.shell import quoted
from diffusion.support.errors import UserError


class Vectors(TextEncoder):
    """A text of two numbers is one vector of them."""

    channels, pooled = 2, False

    def encode(self, texts):
        return torch.tensor([[[float(n) for n in text.split()]] for text in texts])


NUMBERS = torch.arange(5)
TEXT = Text(Vectors(), captions=["1 2", "3 4"])


def said(**given):
    return dict.fromkeys(("classes", "prompt", "prompts")) | given


def test_nothing_said_is_what_the_grids_ask_for():
    assert wish(Classes(3), NUMBERS, said()).cond.tolist() == [0, 1, 2, 0, 1] and wish(Unconditional(), NUMBERS, said()) == (None, None)
    cond, names = wish(TEXT, NUMBERS, said())
    assert torch.equal(cond[:], TEXT.ask(NUMBERS)) and names == ["1 2", "3 4", "1 2", "3 4", "1 2"]


def test_classes_and_texts_in_turn(tmp_path):
    assert wish(Classes(3), NUMBERS, said(classes=[2, 1])).cond.tolist() == [2, 1, 2, 1, 2]
    cond, names = wish(TEXT, NUMBERS, said(prompt="5 6"))
    assert cond[:].tolist() == [[[5.0, 6.0]]] * 5 and names == ["5 6"] * 5
    (tmp_path / "texts").write_text("5 6\n\n7 8\n   \n9 10\n")
    cond, names = wish(TEXT, NUMBERS, said(prompts=str(tmp_path / "texts")))
    assert names == ["5 6", "7 8", "9 10", "5 6", "7 8"] and cond[1:3].tolist() == [[[7.0, 8.0]], [[9.0, 10.0]]]


@pytest.mark.parametrize(
    "conditions, given, message",
    [
        (Classes(10), dict(prompt="7"), r"^prompt=7 is a text, and this model is asked for classes, the numbers 0 to 9: say classes="),
        (Classes(10), dict(prompt="a cat"), "is a text, and this model is asked for classes"),
        (Unconditional(), dict(prompt="a cat"), "trained without a condition, so prompt=a cat cannot be asked of it"),
        (TEXT, dict(classes=[3]), r'^classes=\[3\] is not a text, and this model is asked by texts: say prompt="\.\.\."\.$'),
        (TEXT, dict(prompt="1 2", classes=3), r"^classes and prompt each say what to ask for: say one of them\.$"),
        (TEXT, dict(prompts="/nowhere"), r"^prompts=/nowhere cannot be read \(No such file or directory\): say a file of texts"),
    ],
    ids=lambda value: type(value).__name__ if value is TEXT else str(value),
)
def test_what_cannot_be_asked_is_one_sentence(conditions, given, message):
    with pytest.raises(UserError, match=message):
        wish(conditions, NUMBERS, said(**given))


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "is empty"), (b"\xff\xfe", "not text in UTF-8")])
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "texts").write_bytes(content)
    with pytest.raises(UserError, match=message):
        wish(TEXT, NUMBERS, said(prompts=str(tmp_path / "texts")))


TYPED = [
    "a sneaker, left of a bag",
    'it\'s a "bag"',
    "[a, b] {c: d}",
    "x=y",
    "$HOME ${seed} ${oc.env:HOME} ${",
    "???",
    "null",
    "",
    "1e3",
    "007",
    "C:\\new\\",
    "\\'",
    "~cats/dogs",
    "a;b\nc\td",
    "é ☃ 靴",
    "true",
    "-3",
    "'quoted'",
    "100%20 %",
    "(1,2)*3 | #4 & @5 !",
    "  blanks  ",
    "${text:a}",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_is_taken_as_it_is_typed(text):
    """Past the shell, Hydra and OmegaConf; and the words that are recorded are those that were typed."""
    words = [quoted(f"{key}={text}") for key in ("prompt", "negative_prompt")]
    cfg = composition("ckpt=x", *words, name="sample")
    assert cfg.prompt == cfg.negative_prompt == text
    assert [unescaped(word.partition("=")[2]) for word in words] == [text] * 2
    assert unescaped(text) == text or text == unescaped(escaped(text))


def test_pictures_of_one_text_stand_under_it():
    """Three of "a", two of "b", in rows of two: a strip, two rows, a strip, a row, each strip white with dark letters."""
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 40, 40, 1) * 50
    picture = show(images, 2, names=["a", "a", "a", "b", "b"])
    first, second = tile(images[:3], 2), tile(images[3:], 2)
    strip = (len(picture) - len(first) - len(second)) // 2
    assert torch.equal(picture[strip : strip + len(first)], first) and torch.equal(picture[-len(second) :], second)
    for top in (0, strip + len(first)):
        ink = picture[top : top + strip].float().mean()
        assert 200 < ink < 255
    assert not torch.equal(picture[:strip], picture[strip + len(first) :][:strip])  # a and b


def test_a_long_text_is_broken_into_lines_and_cut():
    images = torch.zeros(1, 60, 60, 1, dtype=torch.uint8)
    heights = [len(show(images, 1, names=[text])) - len(tile(images, 1)) for text in ("bag", "a bag above", "bag " * 99, "b" * 999)]
    assert heights[0] < heights[1] < heights[2] == heights[3] == heights[0] + 28  # of 14 pixels each, three at most
