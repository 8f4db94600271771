"""python -m diffusion.compare, as a user types it: runs, samplers, folders of images, several seeds, and mistakes."""

import json
import shutil

import numpy as np
import pytest
from commands import command, small_run, succeeded
from PIL import Image

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
METRIC = ["metric=fd_digits", "metric.n=40", "device=cpu"]
CONFIGURATIONS = {"a": "optimizer.lr=0.001", "b": "optimizer.lr=0.01"}
pytestmark = pytest.mark.xdist_group("compare")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def compared(*words, **how):
    return succeeded(command("-m", "diffusion.compare", *words, **how))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of two configurations, of two seeds each: a0, a1, b0, b1."""
    folder = tmp_path_factory.mktemp("runs")
    for name, word in CONFIGURATIONS.items():
        for seed in range(2):
            small_run(folder, f"{name}{seed}", word, f"seed={seed}")
    return folder


def test_two_runs_are_measured_with_the_same_seeds_until_the_budget_is_spent(place):
    said = compared(place / "a0", place / "b0", *METRIC, f"paths.cache={place / 'cache'}", "--budget", "170")
    first, other = (lines(place / run / "compare.jsonl") for run in ("a0", "b0"))
    told = "better by" in said.split("```")[-1]
    drawn = [40, 80, 160][: len(first)]
    assert told or len(first) == 3
    for of in (first, other):
        assert [line["passport"]["n"] for line in of] == drawn
        assert all(line["passport"]["seeds"] == {"first": 1_000_000, "count": n} for line, n in zip(of, drawn, strict=True))
        assert all(len(line[f"fd-digits@{n}/without"]) == 10 for line, n in zip(of, drawn, strict=True))
    assert (place / "a0" / "compare.md").read_text() in said and "written: " in said
    assert "each of one training seed, and not of their settings" in said
    with Image.open(place / "a0" / "compare.png") as picture:
        assert picture.size[0] > 300
    again = compared(place / "a0", place / "b0", *METRIC, f"paths.cache={place / 'cache'}", "--budget", "170")
    assert again.count("already") == 2 * len(drawn) and len(lines(place / "a0" / "compare.jsonl")) == len(drawn)
    assert again.split("```")[2] == said.split("```")[2]


def test_a_run_is_not_told_from_its_copy_and_samplers_that_differ_are(place, tmp_path):
    shutil.copytree(place / "a0" / "checkpoints", tmp_path / "copy" / "checkpoints")
    shutil.copy(place / "a0" / "config.yaml", tmp_path / "copy")
    said = compared(place / "a0", tmp_path / "copy", *METRIC, f"paths.cache={place / 'cache'}", "--budget", "40", "name=copies")
    assert "not told apart, 0 ± 0 (40 images of each)" in said
    words = ["sampler=ddim,ddpm", "grid.steps=1,3", "name=ways", f"paths.cache={place / 'cache'}", "--budget", "80"]
    said = compared(place / "b0", *METRIC, *words)
    rows = [row.split(" | ")[0].strip("| ") for row in said.split("```")[-1].splitlines() if row.startswith("| sampler")]
    assert rows == ["sampler=ddim grid.steps=3", "sampler=ddpm grid.steps=1", "sampler=ddpm grid.steps=3"]


def test_several_runs_of_each_configuration_are_compared_as_configurations(place):
    runs = [place / name for name in ("a0", "a1", "b0", "b1")]
    said = compared(*runs, *METRIC, f"paths.cache={place / 'cache'}", "name=seeds")
    assert f"{place / 'b0'} and 1 more" in said and "2 runs of each" in said and "one training seed" not in said
    values = [lines(run / "seeds.jsonl")[-1]["fd-digits@40"] for run in runs]
    table = said.split("```")[-1]
    assert f"| {sum(values[2:]) / 2:.3g} | {sum(values[:2]) / 2:.3g} |" in table
    one_of_one = compared(
        place / "a0", place / "a1", place / "b0", *METRIC, f"paths.cache={place / 'cache'}", "name=three", "--budget", "40"
    )
    assert "runs of each" not in one_of_one and one_of_one.count("40 images of each") >= 2


def test_folders_of_images_are_compared_without_drawing_more(tmp_path):
    generator, words = np.random.default_rng(0), [f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path}"]
    for name, low in {"dark": 0, "light": 128, "real": 0}.items():
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.fromarray(generator.integers(low, low + 128, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    said = compared(tmp_path / "dark", tmp_path / "light", f"reference={tmp_path / 'real'}", "metric=fd_digits", "device=cpu", *words)
    assert f"{tmp_path / 'dark'} is better by" in said and "(30 images of each)" in said and "training seed" not in said
    assert len(lines(tmp_path / "images-dark" / "compare.jsonl")) == 1


def test_two_processes_say_what_one_says(place):
    words = [place / "a0", place / "b0", *METRIC, f"paths.cache={place / 'cache'}", "--budget", "40"]
    one = compared(*words, "name=one")
    two = compared(*words, "name=two", launcher=TORCHRUN)
    assert one.split("```")[-1].replace("one.md", "two.md") == two.split("```")[-1]


def test_checkpoints_of_one_seed_are_no_training_seeds(place):
    """As many of each configuration, but of one run: each is alone."""
    shutil.copytree(place / "a0", place / "a0 again")
    shutil.copytree(place / "b0", place / "b0 again")
    try:
        runs = [place / name for name in ("a0", "a0 again", "b0", "b0 again")]
        said = compared(*runs, *METRIC, f"paths.cache={place / 'cache'}", "name=copied", "--budget", "40")
        assert "2 runs of each" not in said and said.split("```")[-1].count("40 images of each") == 3
    finally:
        shutil.rmtree(place / "a0 again")
        shutil.rmtree(place / "b0 again")


@pytest.mark.parametrize("name", ["ünï", "a,b", "a'b", "a{b [c] (d)", "${x}", "null"])
def test_a_folder_may_have_any_name(place, tmp_path, monkeypatch, name):
    shutil.copytree(place / "b0", tmp_path / name)
    words = [*METRIC, f"paths.cache={place / 'cache'}", "--budget", "40", "name=odd"]
    said = compared(name, place / "a0", *words, cwd=tmp_path)
    assert "40 images of each" in said and (tmp_path / name / "odd.md").exists()


def test_lines_of_another_code_or_of_other_groups_are_not_taken(place):
    words = [place / "a0", place / "b0", *METRIC, f"paths.cache={place / 'cache'}", "--budget", "40", "name=older"]
    compared(*words)
    file = place / "b0" / "older.jsonl"
    compared(*words, "metric.groups=5")
    assert [len(line["fd-digits@40/without"]) for line in lines(file)] == [10, 5]
    file.write_text(file.read_text().replace('"code": "', '"code": "0.0.9 of '))
    result = command("-m", "diffusion.compare", *words)
    assert result.returncode == 1 and "were not measured alike: their code" in result.stderr and "name=NAME" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a0"], "two things"),
        (["a0", "a0"], "said twice"),
        (["a0", "a0/checkpoints/last.ckpt"], "the same as"),
        (["a0", "metric=fd_digits", "metric.n=20,40"], "metric.n is not of how a run is sampled"),
        (["a0", "device=cpu,auto"], "device is not of how a run is sampled"),
        (["a0", "sampler=ddim,heun", "sampler=ddim"], "sampler is said twice"),
        (["a0", "b0", "metric=fd_digits", "name=diagnose"], "name=diagnose is the name of other files"),
        (["a0", "b0", "metric=fd_digits", "--budget", "-1"], "of the first look: say more."),
        (["a0", "b0", "metric=fd_digits", "--budget", "1000000000000"], "more than 10,000,000 images"),
        (["a0", "nowhere"], "no file or folder nowhere"),
        (["a0", "b0", "metric=fid_digits"], "fid_digits is not one of the choices"),
        (["a0", "b0", "ckpt=a0"], "ckpt= is not said here"),
        (["a0", "b0"], "metric=fd_digits"),
        (["a0", "b0", "metric=fd_digits", "--budget", "3"], "less than the 1000 images"),
        (["a0", "b0", "--confidence", "2"], "--confidence 2.0 is a probability"),
        (["a0", "b0", "metric=fd_digits", "schedule=linear"], "is for ckpt=exact"),
    ],
)
def test_a_mistake_in_a_comparison_is_a_sentence(place, words, said):
    there = sorted(place.rglob("*"))
    full = [str(place / word) if (place / word).exists() and "=" not in word else word for word in words]
    result = command("-m", "diffusion.compare", *full)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and said in result.stderr, result.stdout + result.stderr
    assert result.stderr.count("\n") == 1 and sorted(place.rglob("*")) == there
