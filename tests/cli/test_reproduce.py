"""python -m diffusion.reproduce: what a file says made it is run again and compared, and a file that asks for more is refused."""

import json
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from commands import command, succeeded
from composing import TINY
from inside import lines
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion.support.errors import UserError

METRIC = ("metric=[fd_digits,memorization]", "metric.n=33")
TIME = 120  # seconds


def reproduced(*words, env=None):
    return command("-m", "diffusion.reproduce", *words, timeout=TIME, env=env)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a run lies, sampled and measured by commands."""
    place = tmp_path_factory.mktemp("place")
    words = [f"paths.cache={place / 'cache'}", "logger=none"]
    succeeded(command("train.py", *TINY, *METRIC, *words, f"paths.runs={place}", "name=run", "milestone_every=6", "milestone_n=40"))
    run = place / "run"
    succeeded(command("sample.py", f"ckpt={run}", "n=6", "device=cpu", "sampler=ddim", "seed=3", f"out={run / 'samples/one'}"))
    succeeded(command("sample.py", f"ckpt={run}", "n=3", "device=cpu", f"out={run / 'two.npz'}"))
    succeeded(command("sample.py", f"ckpt={run}", "n=3", "device=cpu", f"out={run / 'three.zip'}"))
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={run}", "grid.steps=2", "device=cpu", words[0], "name=two"))
    return place


@pytest.fixture
def run(place, tmp_path):
    """The run moved to another place, to be changed there."""
    shutil.copytree(place / "run", tmp_path / "moved")
    return tmp_path / "moved"


def texts(picture):
    with Image.open(picture) as image:
        return json.loads(image.text["command"])


def test_each_thing_says_its_words(place):
    run = place / "run"
    record = json.loads((run / "samples/one/recipe.json").read_text())
    words = [f"ckpt={run}", "n=6", "device=cpu", "sampler=ddim", "seed=3", f"out={run / 'samples/one'}"]
    assert record["command"] == {"program": "sample", "words": words} and record["environment"]["torch"] == torch.__version__
    assert texts(run / "samples/one/grid.png") == {**record["command"], "file": "grid.png"}
    assert texts(next((run / "samples").glob("main-*.png")))["program"] == "train"
    (drawn,) = run.glob("two-*.png")
    for line in lines(run / "two.jsonl"):
        assert line["command"] == {k: v for k, v in texts(drawn).items() if k != "file"} and line["environment"] == record["environment"]


@pytest.mark.parametrize(
    "name", ["samples/one", "samples/one/recipe.json", "samples/one/000004.png", "samples/one/grid.png", "two.npz", "three.zip"]
)
def test_images_are_the_same_again(run, name):
    """In a run that was moved, without a word about where."""
    said = succeeded(reproduced(run / name))
    assert "reproduced: the same bit for bit." in said and said.count("\n") == 1


def test_numbers_are_the_same_again(run):
    """Of a whole file, of a line, and of a training whose checkpoint is there; not of one whose checkpoint is not."""
    said = succeeded(reproduced(run / "two.jsonl")).splitlines()
    assert len(said) >= 2 and all("reproduced: " in line and line.endswith(" again.") for line in said)
    one = succeeded(reproduced(run / "two.jsonl", "1")).splitlines()
    assert one == succeeded(reproduced(f"{run / 'two.jsonl'}:1")).splitlines() and set(one) < set(said)
    (drawn,) = run.glob("two-*.png")
    assert "reproduced: the same bit for bit" in succeeded(reproduced(drawn))
    records = lines(run / "metrics.jsonl")
    numbers = {(r["step"], r["metric"]): i for i, r in enumerate(records, 1) if "passport" in r}
    assert "reproduced: " in succeeded(reproduced(f"{run / 'metrics.jsonl'}:{numbers[12, 'fd-digits@33']}"))
    assert "reproduced: " in succeeded(reproduced(f"{run / 'metrics.jsonl'}:{numbers[12, 'fd-digits@40']}"))
    step, metric = min(key for key in numbers if key[1].startswith("fd"))
    early = reproduced(f"{run / 'metrics.jsonl'}:{numbers[step, metric]}")
    assert early.returncode == 1 and f"no checkpoint of step {step} is kept, but one of 12" in early.stderr
    loss = next(i for i, r in enumerate(records, 1) if "loss" in r)
    assert "a loss is made by training again" in reproduced(f"{run / 'metrics.jsonl'}:{loss}").stderr


def test_a_table_is_made_again_by_its_lines(run, place):
    """The cells of a sweep, each by its own words, and the contestants of a comparison; the pictures say the whole command."""
    words = ["sampler=ddim,heun", "grid.steps=2", "metric=fd_digits", "metric.n=33", "device=cpu", f"paths.cache={place / 'cache'}"]
    succeeded(command("-m", "diffusion.evaluate", "-m", f"ckpt={run}", *words, "name=table"))
    assert texts(run / "table.png") == {"program": "evaluate", "words": ["-m", f"ckpt={run}", *words, "name=table"], "file": "table.png"}
    succeeded(command("-m", "diffusion.compare", run, *words, "--budget", "33"))
    assert texts(run / "compare.png")["program"] == "compare"
    for name in ("table", "compare"):
        said = succeeded(reproduced(run / f"{name}.md")).splitlines()
        assert len(said) == 2 and all(line.endswith(" again.") for line in said)
        refused = reproduced(run / f"{name}.png")
        assert refused.returncode == 1 and "is not run again here: name a line of numbers" in refused.stderr


def test_a_changed_weight_is_noticed(run):
    from diffusion.checkpoint import read_checkpoint, write_checkpoint

    file = run / "checkpoints/last.ckpt"
    content = read_checkpoint(file)
    name, weight = next((name, w) for name, w in content["ema"]["shadow"].items() if w.numel() > 8 and w.is_floating_point())
    content["ema"]["shadow"][name] = weight + 1e-7 * weight.abs().max()
    write_checkpoint(content, file)
    for thing in ("samples/one", "two.jsonl"):
        result = reproduced(run / thing)
        assert result.returncode == 1 and "not reproduced: the weights are not those" in result.stdout


def test_a_changed_thing_is_noticed(run):
    """By one level, in the same environment; elsewhere a few levels are rounding, and more are not."""
    file = run / "samples/one/000002.png"
    pixels, info = np.array(Image.open(file)), PngInfo()
    info.add_text("command", Image.open(file).text["command"])
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file, pnginfo=info)
    result = reproduced(file)
    assert result.returncode == 1 and "of the pixels differ, by 1 of 256 levels at most, where code, device and" in result.stdout
    record = json.loads((run / "samples/one/recipe.json").read_text())
    record["environment"]["torch"] = "0.0"
    (run / "samples/one/recipe.json").write_text(json.dumps(record))
    assert f"reproduced within the bands: {1 / pixels[..., 0].size:.2%}" in succeeded(reproduced(file)).replace("1.56%", f"{1 / 64:.2%}")
    line = lines(run / "two.jsonl")[0]
    line[line["metric"]] *= 1.0001
    (run / "two.jsonl").write_text(json.dumps(line))
    assert "not reproduced: " in reproduced(run / "two.jsonl").stdout
    line["passport"]["code"] = "0.0"
    (run / "two.jsonl").write_text(json.dumps(line))
    assert "reproduced within the bands: " in succeeded(reproduced(run / "two.jsonl"))


MALICIOUS = [
    "trust=[evil]",
    "+trust=evil",
    "hydra.run.dir=evil",
    "hydra/launcher=joblib",
    "sampler._target_=evil.Sampler",
    "+sampler.x={_target_: evil.Sampler}",
    "sampler=custom",
    "sampler=../../evil",
    "--multirun",
    "--config-dir=.",
    "seed=1,2",
    "~sampler",
    "launcher=joblib",
    "prompts=/etc/passwd",
    "prompts=../secret.txt",
    "prompts=~/secret.txt",
    "prompts=secret.txt",
    "prompts=linked.txt",
    "edit.image=[/etc/passwd]",
    "prompts=${oc.env:HOME}",
    "guidance.ckpt=/somewhere",
    "+guidance.cfg.scale=evil.module",
    "sampler@x=ddim",
    "classes=${oc.env:HOME}",
]


@pytest.fixture(scope="module")
def refusal(place):
    """The function `words_again` of the words of a recipe in the run's folder, where composing is possible."""
    from diffusion.evaluation.made import made_things
    from diffusion.reproduce import words_again

    def refuse(path):
        return [words_again(thing, ()) for thing in made_things(path, None)]

    return refuse


@pytest.mark.parametrize("word", MALICIOUS)
@pytest.mark.parametrize("kind", ["json", "png", "jsonl"])
def test_a_file_that_asks_for_more_is_refused(run, refusal, monkeypatch, word, kind):
    """Whichever file says it, before anything runs; there is a secret where the user stands, and a link to it in the folder."""
    secret = run.parent / "stands"
    secret.mkdir()
    (secret / "secret.txt").write_text("x")
    (run / "linked.txt").symlink_to(secret / "secret.txt")
    monkeypatch.chdir(secret)
    with pytest.raises(UserError, match=r"is not followed|is not run again|is not one KEY=VALUE|type the word itself"):
        refusal(poisoned(run, kind, word))


@pytest.mark.parametrize("word", ["x=" + "[" * 500 + "]" * 500, "a" * 5000 + "=1", "x=" + "a" * 20_000, "prompt=" + "a" * 20_000])
def test_a_word_without_end_is_refused(tmp_path, word):
    from diffusion.harmless import harmless

    with pytest.raises(UserError, match=r"no word of ours is so long or so deep|letters, which no command of ours has"):
        harmless([word], tmp_path)


def test_a_long_text_is_no_file(tmp_path):
    from diffusion.harmless import harmless

    assert harmless(["x=" + "a" * 5000], tmp_path) == ["x=" + "a" * 5000]


def poisoned(run, kind, word):
    """A file of this kind whose command has this word beside its own."""
    if kind == "jsonl":
        file = run / "two.jsonl"
        line = lines(file)[0]
        line["command"]["words"].append(word)
        file.write_text(json.dumps(line))
    elif kind == "png":
        file = run / "samples/one/grid.png"
        said, info = texts(file), PngInfo()
        info.add_text("command", json.dumps({**said, "words": [*said["words"], word]}))
        Image.open(file).save(file, pnginfo=info)
    else:
        file = run / "samples/one/recipe.json"
        record = json.loads(file.read_text())
        record["command"]["words"].append(word)
        file.write_text(json.dumps(record))
    return file


@pytest.mark.parametrize(
    "word", ["metric.extractor=TorchScript", "metric.extractor=Function", "metric=custom", "metric.extractor=os.system"]
)
def test_a_metric_that_runs_code_is_refused(run, word, tmp_path):
    """As a user types it: one sentence, exit code 1, nothing run and nothing written."""
    before = sorted(path for path in run.rglob("*"))
    file = poisoned(run, "jsonl", word)
    result = reproduced(file)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr and not result.stdout and sorted(run.rglob("*")) == before


DAMAGED = {
    "half.json": b'{"command": ',
    "list.json": b"[1]",
    "old.json": b'{"command": "python sample.py ckpt=x"}',
    "words.json": b'{"command": {"program": "sample", "words": [1]}}',
    "program.json": b'{"command": {"program": "rm", "words": ["n=1"]}}',
    "deep.json": b"[" * 100_000,
    "x.npz": b"PK no",
    "x.zip": b"PK\x05\x06" + bytes(18),
    "x.png": b"\x89PNG\r\n",
    "x.jsonl": b"no line\n",
    "bytes.jsonl": b'\xff\xfe"cell"\n',
    "x.txt": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    for words in [(name,), (name, "1")] if name.endswith("jsonl") else [(name,)]:
        result = reproduced(tmp_path / words[0], *words[1:])
        assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert os.listdir(tmp_path) == [name]


def test_what_lies_in_no_run_is_told_its_run(run, tmp_path):
    """A picture that was sent; and a call of diffusion.evaluate with images that only the user can name."""
    sent = tmp_path / "sent.png"
    shutil.copy(run / "samples/one/000001.png", sent)
    assert "lies in no run's folder" in reproduced(sent).stderr
    assert "reproduced: the same bit for bit" in succeeded(reproduced(sent, f"ckpt={run}"))
    assert reproduced(tmp_path / "none.png").returncode == 1 and reproduced(run).returncode == 1


def header_of(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADERS = [
    b"{'descr': '<U500000000', 'fortran_order': False, 'shape': ()}",
    b"{'descr': '<U99999999999999999999'",
    b"{'descr': ((",
    b"{[]: 1}",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_recipe_of_a_broken_header_is_a_sentence(tmp_path, header):
    from diffusion.evaluation.made import images_in, recipe_in

    with ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("recipe", "arr_0"):
            archive.writestr(f"{name}.npy", header_of(header) + bytes(64))
    for read in (recipe_in, images_in):
        with pytest.raises(UserError, match="damaged"):
            read(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.zip"])
def test_images_whose_recipe_is_unpacked_beyond_its_size_are_not_measured(tmp_path, name):
    from diffusion.evaluation.given import said_of

    with ZipFile(tmp_path / name, "w", compression=8) as archive:
        archive.writestr("recipe.npy" if name == "x.npz" else "recipe.json", header_of(HEADERS[0]) + b" " * 60_000_000)
    with pytest.raises(UserError, match="says more than any file of ours"):
        said_of(tmp_path / name)


RECIPE = {"sampler": {"name": "DDIM"}, "seeds": {"count": 1, "seed": 0}, "step": 1, "nfe": 2, "classes": None, "size": None}
DEEP = json.loads('{"a": ' * 900 + "1" + "}" * 900)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, True),
        ({"nfe": 10**400}, None),
        ({"sampler": DEEP}, None),
        ({"sampler": {"name": "DDIM", "a": float("inf")}}, True),  # is not finite, as our own lines would say it
        *(({"nfe": nfe}, False) for nfe in (-1, 10**200, True)),
        *(({"seeds": {"seed": seed}}, False) for seed in (True, -1, 2**32)),
        *((change, False) for change in ({"sampler": {}}, {"guidance": 5}, {"precision": 1}, {"step": 10**200})),
    ],
)
def test_a_recipe_that_says_nonsense_is_not_believed(tmp_path, change, said):
    from diffusion.evaluation.given import said_of

    with ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("recipe.json", json.dumps(RECIPE | change))
    if said is None:
        with pytest.raises(UserError, match="does not hold what a command writes there"):
            said_of(tmp_path / "x.zip")
    else:
        found = said_of(tmp_path / "x.zip")
        assert bool(found) is said and json.dumps(found, allow_nan=False)


def test_a_picture_of_more_pixels_than_ours_is_not_decoded(tmp_path):
    from diffusion.evaluation import made

    info = PngInfo()
    info.add_text("command", "{}")
    Image.new("L", (9000, 9000)).save(tmp_path / "x.png", pnginfo=info)
    for read in (lambda path: made.made_things(path, None), made.levels_of):
        with pytest.raises(UserError, match="pixels"):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["samples/one/recipe.json", "samples/one/grid.png", "two.npz", "three.zip"])
def test_words_that_make_another_number_of_images_are_not_run(run, name):
    from diffusion.composing import composing
    from diffusion.evaluation.made import made_things
    from diffusion.reproduce import require_as_many, words_again

    (thing,) = made_things(run / name, None)
    with composing():
        words = words_again(thing, ())
        require_as_many(thing, words)
        with pytest.raises(UserError, match="its words make 10,000,000 images"):
            require_as_many(thing, [*words, "n=10000000"])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("recipe.json", {"command": {"program": "evaluate", "words": []}}, "makes no such thing"),
        ("x.jsonl", {"command": {"program": "sample", "words": []}}, "makes no such thing"),
        ("x.jsonl", {"command": {"program": "attribute", "words": []}}, "run the words of that command again"),
        ("x.jsonl", {"fd-digits@33": 10**400}, "does not hold what a command writes there"),
        ("x.jsonl", {"fd-digits@33": "x"}, "no line of diffusion.evaluate"),
    ],
)
def test_a_program_that_does_not_make_such_a_thing(run, tmp_path, name, change, said):
    from diffusion.evaluation.made import made_things

    source = next(line for line in lines(run / "two.jsonl") if line["metric"] == "fd-digits@33")
    (tmp_path / name).write_text(json.dumps(source | change))
    with pytest.raises(UserError, match=said):
        made_things(tmp_path / name, 1 if name == "x.jsonl" else None)


def test_an_npz_is_not_unpacked_beyond_its_size(tmp_path):
    with ZipFile(tmp_path / "x.npz", "w", compression=8) as archive:
        archive.writestr("recipe.npy", bytes(60_000_000))
    result = reproduced(tmp_path / "x.npz")
    assert result.returncode == 1 and "says more than any file of ours" in result.stderr
    assert Path(tmp_path / "x.npz").stat().st_size < 100_000
