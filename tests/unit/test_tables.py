"""What is measured, and the table that is made of it."""

import csv
import json
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from composing import composition, typed

from diffusion.checkpoint import load
from diffusion.conditions import Classes
from diffusion.evaluate import EXACT, own_way, settings, where
from diffusion.evaluation import cells, subjects
from diffusion.evaluation import tables as table
from diffusion.evaluation.subjects import Drawn
from diffusion.support.errors import UserError

DIGITS = ["ckpt=exact", "dataset=digits", "metric.n=60"]


@pytest.fixture
def subject(tmp_path):
    """`subject(*words)`: what is measured, the way it is sampled, and the command's own keys, as diffusion.evaluate makes them."""

    def composed_subject(*words):
        words = [f"paths.cache={tmp_path}", f"out={tmp_path / 'cells.jsonl'}", "device=cpu", *words]
        cfg = composition(*words, name="evaluate")
        config = settings(cfg)
        if config["ckpt"] != EXACT:
            load(config["ckpt"])
        found = subjects.exact(config, torch.device("cpu"))
        return found, own_way(found.model, cfg, typed(*words)), config

    return composed_subject


@pytest.fixture
def evaluate(subject):
    """`evaluate(said, *words)`: measure one cell, as typed `said`."""

    def measured(said, *words):
        found, way, config = subject(*words)
        cells.evaluate(found, way, config, said, where(config))

    return measured


def distance(data, images):
    """Of each image to the nearest of the data, the largest difference of a pixel."""
    return [int(np.abs(data.astype(int) - image.astype(int)).max((1, 2, 3)).min()) for image in images]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm"])
def test_the_exact_denoiser_gives_back_the_data(subject, sampler):
    """At many steps every image is one of the data set's, of the class asked for."""
    of, way, _ = subject(*DIGITS, f"sampler={sampler}", "grid.steps=100")
    recipe = of.model.recipe(way["sampler"], way["grid"], way["guidance"])
    images = recipe(range(20), recipe.conditions.ask(torch.arange(20))).images.numpy()
    for c in range(10):
        assert max(distance(of.data.images[of.data.labels == c], images[c::10])) <= 1


def test_the_floor_is_of_the_data_and_by_seed(subject):
    data = subject(*DIGITS)[0].data
    drawn = Drawn(data, Classes(10))
    labels = drawn.conditions.ask(torch.arange(30))
    images, calls = drawn(range(30), labels)
    assert torch.equal(images[7:9], drawn([7, 8], labels[7:9]).images) and calls == 0
    for c in range(10):
        assert distance(data.images[data.labels == c], images[c::10].numpy()) == [0, 0, 0]
    assert len(drawn(range(5)).images) == 5


def test_what_is_no_line_of_ours_is_passed_over(evaluate, tmp_path):
    """Whatever somebody's program wrote between; it stays there."""
    path, words = tmp_path / "cells.jsonl", [*DIGITS, "sampler=ddim", "grid.steps=4"]
    evaluate({}, *words)
    before = path.read_bytes()
    path.write_bytes(b'5\n["cell"]\n{"cell": 3}\n\xff\xfe\n"cell"\n' + before)
    evaluate({}, *words)
    assert path.read_bytes().endswith(before) and len(table.read_cells(path)) == 1


def changed(line, key, value):
    """A line whose value at a dotted key is another; none, if it is `...`."""
    *outer, last = key.split(".")
    line = json.loads(json.dumps(line))
    inner = line
    for name in outer:
        inner = inner[name]
    inner[last] = value
    if value is ...:
        del inner[last]
    return line


WRONG = {
    **{"passport": [[], 5], "numbers": [5, "fd@1", [5], ["fd@2"]], "seconds": [None, "x"], "words": [[], {"ckpt": [1]}], "way": [None]},
    **{"fd@1": [..., "x", True, float("nan"), 1e999, 10**400, [1]], "fd@1/without": [5, [1e999], ["x"], [True]], "fd@1/error": ["x"]},
    **{f"passport.{key}": [..., "x", -5, 10**400, True, None] for key in ("n", "nfe")},
    **{"passport.sampler": [5, {}, {"name": 5}, {"name": "S", "grid": 5}], "passport.guidance": [5, {"scale": [1]}], "passport.id": [...]},
    **{"trained": [5, {"a": {}}], "ckpt": [[]], "metric": [5, "fd@2"], "cell": [3, json.loads("[" * 50 + "]" * 50)]},
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_line_that_says_nonsense_is_no_line_of_ours(tmp_path, key, value):
    right = cell({"ckpt": "exact"}, 1.5, 5, 5)
    found = changed(right, key, value)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (found, right, right | {"fd@1": None})))
    assert [line["fd@1"] for line in table.read_cells(tmp_path / "x.jsonl")] == [1.5, None]


def test_lines_are_read_from_a_file_alone(tmp_path):
    """A pipe, a device and a link out of the folder are not read; a line without end in depth is passed over."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(UserError, match=f"{name}.jsonl is not read: "):
            table.read_cells(tmp_path / f"{name}.jsonl")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    assert table.read_cells(tmp_path / "deep.jsonl") == table.read_cells(tmp_path / "none.jsonl") == []


def test_a_cell_is_measured_once_and_always_the_same(evaluate, tmp_path):
    path, other = tmp_path / "cells.jsonl", tmp_path / "other.jsonl"
    words = [*DIGITS, "sampler=ddim", "grid.steps=4", "floor=true"]
    for _ in range(2):
        evaluate({"sampler": "ddim", "out": "x"}, *words)
    evaluate({}, *words, f"out={other}", "sample_batch_size=7")
    first, second = (table.read_cells(p) for p in (path, other))
    assert len(first) == len(second) == 2
    assert [a["fd-digits@60"] for a in first] == pytest.approx([b["fd-digits@60"] for b in second], rel=1e-6)
    assert [a["passport"]["id"] for a in first] == [b["passport"]["id"] for b in second]
    assert first[0]["words"] == {"sampler": "ddim"}
    lines = [(line["cell"], line["metric"]) for line in first]
    for change in ("seed=5", "guidance.scale=2", "schedule=linear", "metric.n=61", "sampler.eta=1"):
        evaluate({}, *words, change)
        last = table.read_cells(path)[-1]
        assert (last["cell"], last["metric"]) not in lines
    assert len([line for line in table.read_cells(path) if line["way"] == "sampler"]) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ckpt=exact"], "dataset=digits"),
        (["ckpt=exact", "dataset=synthetic"], "metric=fd_digits, fid or fd_resnet56"),
        (["ckpt=runs/none", "metric=fd_digits"], "There is no checkpoint"),
        ([*DIGITS, "grid.steps=2000"], "grid.steps=2000"),
    ],
)
def test_mistakes_are_a_sentence(evaluate, words, said):
    with pytest.raises((UserError, ValueError), match=said):
        evaluate({}, *words)


def cell(words, value, steps, nfe, way="sampler", grid="Karras", metric="fd@1", **more):
    sampler = {"name": "S", "grid": {"name": grid, "steps": steps}} if way == "sampler" else {"name": "drawn"}
    passport = {"sampler": sampler, "nfe": nfe, "n": 1, "id": "ab", "code": "0", "guidance": more.pop("guidance", None)}
    return {"cell": {"a": 1}, "way": way, "words": words, "metric": metric, metric: value, "passport": passport, "seconds": 1.0, **more}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "cells.jsonl"
    cells = [
        cell({"ckpt": "exact", "sampler": "ddim", "grid.steps": "5"}, 9.0, 5, 5),
        cell({"ckpt": "exact"}, 1.25, 0, 0, way="floor"),
        cell({"ckpt": "exact", "sampler": "ddim", "sampler.eta": "1", "grid.steps": "5"}, 7.0, 5, 5),
        cell({"ckpt": "exact", "sampler": "heun", "grid.steps": "10"}, None, 10, 19),
        cell({"ckpt": "exact", "sampler": "ddim", "grid.steps": "10"}, 3.0, 10, 10),
        cell({"ckpt": "exact", "sampler": "ddim", "grid.steps": "10"}, 2.5, 10, 10),
    ]
    path.write_text("".join(json.dumps(c) + "\n" for c in [*cells, {"loss": 1}]) + '{"half')
    return path, table.save(path, "the command")


def test_the_table(saved):
    """What was swept names the rows; steps are columns; calls stand in brackets; the last of a repeated cell counts."""
    path, text = saved
    assert path.with_suffix(".md").read_text() == text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "|  | grid | 5 steps | 10 steps |",
        "| --- | --- | --- | --- |",
        "| ddim | Karras | 9 (5) | **2.5** (10) |",
        "| ddim eta=1 | Karras | **7** (5) |  |",
        "| heun | Karras |  | not finite (19) |",
    ]
    assert "the command" in text and "drawn from the data set itself: 1.25" in text


def guided(run, scale, fid, score, trained):
    """The two lines of a run at one scale."""
    words = {"ckpt": run, "guidance.scale": str(scale)}
    inside = {"name": "Clip", "low": -1.0, "denoiser": {"name": "ClassifierFree", "denoiser": "Denoiser", "scale": scale}}
    facts = {"ckpt": run, "trained": trained, "guidance": inside}
    return [cell(words, fid, 10, 20, metric="fid@1", **facts), cell(words, score, 10, 20, metric="is@1", higher=True, **facts)]


def test_a_table_by_scale_of_several_runs(tmp_path):
    """Steps that are one for all leave the columns to guidance's scale; a run is named by what its training alone was told; of a metric
    that is better when it is higher the highest is bold; a run of no words keeps its name."""
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    runs = [("runs/a", {"name": "a", "p_uncond": "0.1", "seed": "0"}), ("runs/b", {"name": "b", "p_uncond": "0.2", "seed": "0"})]
    for path, (run, trained), offset in zip(paths, runs, (0, 1), strict=True):
        found = [line for scale in (1.0, 1.5, 4.0) for line in guided(run, scale, (scale - 1.5) ** 2 + 2 + offset, 10 * scale, trained)]
        path.write_text("".join(json.dumps(line) + "\n" for line in found))
    text = table.save(tmp_path / "both", "the command", paths)
    assert [line for line in text.splitlines() if line.startswith("| ")] == [
        "|  | grid | scale 1 | scale 1.5 | scale 4 |",
        "| --- | --- | --- | --- | --- |",
        "| p_uncond=0.1 | Karras | 2.25 (20) | **2** (20) | 8.25 (20) |",
        "| p_uncond=0.2 | Karras | 3.25 (20) | **3** (20) | 9.25 (20) |",
        "|  | grid | scale 1 | scale 1.5 | scale 4 |",
        "| --- | --- | --- | --- | --- |",
        "| p_uncond=0.1 | Karras | 10 (20) | 15 (20) | **40** (20) |",
        "| p_uncond=0.2 | Karras | 10 (20) | 15 (20) | **40** (20) |",
    ]
    assert "the best of each row in bold" in text and (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(csv.DictReader((tmp_path / "both.csv").open()))) == 12
    same = [{**line, "trained": {"name": line["ckpt"], "seed": "0"}} for path in paths for line in table.read_cells(path)]
    assert {row["label"] for row in table.layout(same)} == {"ckpt=runs/a", "ckpt=runs/b"}
    steps = [*same[:1], cell({"ckpt": "runs/a", "grid.steps": "5", "guidance.scale": "2"}, 1.0, 5, 5, metric="fid@1", ckpt="runs/a")]
    assert table.columns(table.layout(steps)) == "steps"


def test_the_csv_and_the_plot(saved):
    path, _ = saved
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert [(row["label"], row["calls"], row["value"]) for row in rows][:2] == [("ddim", "5", "9.0"), ("the data set itself", "0", "1.25")]
    assert len(rows) == 5
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_value_that_has_no_logarithm_is_drawn_on_a_straight_axis(tmp_path):
    """No image memorised is the best there is; a likelihood may be negative."""
    row = {
        "metric": "memorized@20",
        "label": "ddim",
        "grid": "Karras",
        "steps": 2,
        "scale": None,
        "calls": 2,
        "value": 0.0,
        "higher": False,
    }
    rows = [row, row | {"steps": 4, "calls": 4, "value": -0.5}, row | {"label": "heun", "calls": 3, "value": 0.25}]
    table.plot(rows, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_few_in_colour_and_named_apart():
    """In colour are those that no other beats with as few calls; of equal names the grid tells; names keep their order and a distance."""
    lines = {"best at 5": [(5, 2.0), (10, 1.9)], "best later": [(5, 9.0), (10, 1.0)], "never": [(5, 8.0), (10, 3.0)], "dear": [(20, 1.5)]}
    assert table.leading(lines) == ["best later", "best at 5"]
    curves = {
        ("a", "Karras"): {5: {"calls": 5, "value": 2.0}},
        ("a", "EDM"): {5: {"calls": 5, "value": None}, 9: {"calls": 9, "value": 1.0}},
    }
    assert table.points(curves | {("b", "EDM"): {5: {"calls": 5, "value": None}}}) == {"a, Karras": [(5, 2.0)], "a, EDM": [(9, 1.0)]}
    places = table.spread_out([0.0, 0.1, 0.2, 9.0], 1.0)
    assert all(b - a >= 1 - 1e-12 for a, b in pairwise(places)) and places[3] == 9 and places[1] == pytest.approx(0.1)
