"""Texts through the real commands: trained with captions, asked for by prompts."""

import json
import os
import runpy
import sys

import numpy as np
import pytest
from commands import ROOT, command, succeeded
from inside import lines, sampled, trained
from PIL import Image

from diffusion.conditions import Bytes
from diffusion.support.errors import UserError

WORDS = [
    "dataset=captioned_digits",
    "dataset.image_size=16",
    "dataset.num_classes=200",
    "dataset.n=64",
    "conditions=text_bytes",
    "conditions.encoder.depth=1",
    "network.channels=8",
    "network.attention=[8]",
    "steps=2",
    "batch_size=8",
    "eval_every=2",
    "metric=none",
    "grid.steps=2",
    "callbacks.samples.rows=3",
]
TYPED = [
    "a seven, left of a two",
    'it\'s a "seven"',
    "[a, b] {c: d}",
    "x=y",
    "$HOME ${seed} ${oc.env:HOME}",
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
    "100%20 %",
    "(1,2)*3 | #4 & @5 !",
    "  blanks  ",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("prompts") / "run", *WORDS)


@pytest.mark.xdist_group("prompts")
def test_a_prompt_reaches_the_encoder_as_it_is_typed(run, tmp_path, monkeypatch):
    """Twenty of them, and each as the negative one of the next, by the command in a child of this process, whose encoder says what it was
    given."""
    encode = Bytes.encode

    def saying(self, texts):
        with open(os.environ["SAID"], "a") as file:
            file.write(json.dumps(list(texts)) + "\n")
        return encode(self, texts)

    monkeypatch.setattr(Bytes, "encode", saying)
    for i, (text, negative) in enumerate(zip(TYPED, TYPED[-1:] + TYPED, strict=False)):
        out = tmp_path / str(i)
        child = os.fork()
        if child == 0:
            os.environ["SAID"] = str(tmp_path / f"{i}.jsonl")
            sys.argv = [
                "sample.py",
                f"ckpt={run}",
                f"prompt={text}",
                f"negative_prompt={negative}",
                "guidance.scale=2",
                "n=1",
                f"out={out}",
            ]
            sys.argv += ["device=cpu", "grid.steps=1"]
            try:
                runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
            finally:
                os._exit(0 if (out / "recipe.json").exists() else 1)
        assert os.waitpid(child, 0)[1] == 0, text
        assert lines(tmp_path / f"{i}.jsonl")[:2] == [[negative], [text]]
        record = json.loads((out / "recipe.json").read_text())
        assert record["prompts"] == [text] and np.load(out / "samples.npz")["prompts"].tolist() == [text]


@pytest.mark.xdist_group("prompts")
def test_the_command_of_the_issue(run, tmp_path):
    """In a process of its own; what it records are the words as they were typed, and they make the same again."""
    text, other = 'a seven, left of a "two"', "an 8, [x] = ${y}"
    asked = ["sample.py", f"ckpt={run}", f"prompt={text}", f"negative_prompt={other}", "guidance.scale=4", "n=2", "seed=3", "device=cpu"]
    succeeded(command(*asked, f"out={tmp_path / 'a'}"))
    record = json.loads((tmp_path / "a/recipe.json").read_text())
    assert record["guidance"]["denoiser"]["negative"] == other and record["guidance"]["denoiser"]["scale"] == 4
    assert record["command"] == {"program": "sample", "words": [*asked[1:], f"out={tmp_path / 'a'}"]}
    assert "the same bit for bit" in succeeded(command("-m", "diffusion.reproduce", tmp_path / "a", f"ckpt={run}"))
    made = np.load(tmp_path / "a/samples.npz")
    assert made["prompts"].tolist() == [text] * 2 and "labels" not in made.files


@pytest.mark.xdist_group("prompts")
def test_a_file_of_prompts(run, tmp_path):
    """Its mark at the beginning is no letter of the first prompt; only a line's end ends one, and blank lines count for nothing."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffa one\r\n\r\na two\u2028below\r\n".encode())
    made = sampled(run, tmp_path / "out", f"prompts={tmp_path / 'prompts.txt'}")
    assert made["prompts"].tolist() == ["a one", "a two\u2028below"] and len(made["images"]) == 2


@pytest.mark.xdist_group("prompts")
@pytest.mark.parametrize("words", [["guidance=none"], ["guidance=clip"], ["guidance.scale=2", "guidance.negative=c"]], ids=str)
def test_a_negative_prompt_that_would_do_nothing(run, tmp_path, words):
    with pytest.raises(UserError, match=r"negative_prompt=b is what guidance=\[cfg\] guides away from"):
        sampled(run, tmp_path / "out", "prompt=a", "negative_prompt=b", *words)


@pytest.mark.xdist_group("prompts")
def test_a_run_names_its_texts(run):
    """Its grid has three rows, each under its text, which a model of classes has not."""
    picture = Image.open(run / "samples/main-step=00000002.png")
    assert picture.size[0] == 2 * 34 + 2 and 3 * 16 <= picture.size[1] - 3 * (34 + 2) <= 3 * 44  # pictures of 32 pixels; 1 to 3 lines each
