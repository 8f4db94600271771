"""python -m diffusion.pareto, as a user types it."""

import json

import pytest
from commands import command, small_run, succeeded
from PIL import Image

from diffusion.dashboard import Reader

pytestmark = pytest.mark.xdist_group("pareto")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small_run(folder, "run")
    return folder


def test_the_front_of_a_run(place):
    words = ["metric=fd_digits", "metric.n=40", f"paths.cache={place / 'cache'}", "device=cpu", "sampler=ddim,heun", "grid.steps=2,4"]
    said = succeeded(command("-m", "diffusion.pareto", place / "run", *words, "--budget", "80"))
    assert "The best for 2 calls is sampler=" in said
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in said.splitlines() if row.startswith("|")][2:]
    assert {row[0]: row[1] for row in rows} == {
        "sampler=ddim grid.steps=2": "2",
        "sampler=heun grid.steps=2": "2",  # of two steps the first goes down a cliff, and the last to data: one call each
        "sampler=ddim grid.steps=4": "4",
        "sampler=heun grid.steps=4": "7",
    }
    gflop = {row[0]: float(row[2]) / int(row[1]) for row in rows}
    assert max(gflop.values()) == pytest.approx(min(gflop.values()), rel=0.01) and min(float(row[3]) for row in rows) > 0
    assert {row[6] for row in rows} <= {"on the front", "behind, not told apart", "dropped"} and "on the front" in rows[0]
    for line in map(json.loads, (place / "run" / "pareto.jsonl").read_text().splitlines()):
        assert line["passport"]["seeds"]["first"] == 1_000_000
    with Image.open(place / "run" / "pareto.png") as picture:
        assert picture.size[0] > 300
    assert (place / "run" / "pareto.md").read_text() in said
    front = Reader(place)()[0].front  # on the page
    assert {one["label"] for one in front["points"]} == set(gflop) and front["sentences"][0] in said
    for file in (
        json.loads((place / "run" / "pareto.json").read_text())["command"],
        json.loads(Image.open(place / "run" / "pareto.png").text["command"]),
    ):
        assert file["program"] == "pareto" and file["words"][1:] == [*words, "--budget", "80"]


def test_a_word_that_is_typed_takes_the_place_of_the_usual_ones(place):
    words = ["metric=fd_digits", "metric.n=20", f"paths.cache={place / 'cache'}", "device=cpu", "--budget", "20", "name=typed"]
    said = succeeded(command("-m", "diffusion.pareto", place / "run", *words, "grid.steps=2", timeout=500))
    points = json.loads((place / "run" / "typed.json").read_text())["points"]
    assert "6 ways, 20 images of each" in said and all("grid.steps=2" not in one["label"] for one in points) and len(points) == 6


def test_guidance_costs_what_it_costs(place):
    """Two calls of the network for one of the denoiser, and one where it is switched off."""
    words = [
        "metric=fd_digits",
        "metric.n=20",
        f"paths.cache={place / 'cache'}",
        "device=cpu",
        "grid.steps=4",
        "--budget",
        "20",
        "--cost",
        "gflop",
    ]
    said = succeeded(command("-m", "diffusion.pareto", place / "run", *words, "guidance.scale=1,2", "name=guided"))
    plain, guided = json.loads((place / "run" / "guided.json").read_text())["points"]
    assert (plain["calls"], guided["calls"]) == (4, 8) and guided["gflop"] == pytest.approx(2 * plain["gflop"], rel=1e-6)
    assert f"The best for {plain['gflop']:.3g} GFLOP an image is guidance.scale=1" in said
    within = ["guidance=[cfg,interval]", "guidance.scale=2", "guidance.interval.high=1,2", "name=within"]
    succeeded(command("-m", "diffusion.pareto", place / "run", *words, *within))
    points = json.loads((place / "run" / "within.json").read_text())["points"]
    assert all(4 < one["calls"] < 8 and one["gflop"] / one["calls"] == pytest.approx(plain["gflop"] / 4) for one in points)


def test_a_mistake_about_a_front_is_a_sentence(place):
    for words, sentence in {
        ("nowhere",): "no file or folder nowhere",
        ("run", "sampler=ddim,dim"): "dim is not one of the choices",
        ("run", "metric=fd_digits", "--budget", "1"): "less than the 1000 images",
        ("run", "metric=fd_digits", "seed=1,2"): "the same seeds",
        ("run", "metric=fd_digits,inception_score"): "metric is not of how a run is sampled",
    }.items():
        result = command("-m", "diffusion.pareto", *(str(place / word) if word == "run" else word for word in words))
        assert result.returncode == 1 and sentence in result.stderr and result.stderr.count("\n") == 1, result.stderr
