"""What the page is given, and the file that is written."""

import base64
import json
import re
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from made_runs import config, distance, losses, png, sweep, write_run

from diffusion.dashboard import Pictures, Reader, contents, html
from diffusion.dashboard.page import CURVES, coarse_to_fine, compared, row_labels, telling
from diffusion.dashboard.read import flat

PLOTLY = pytest.importorskip("plotly", reason="the dashboard draws with plotly: pip install -e .[dashboard]")
ROOT = Path(__file__).parents[2]


def data_of(folder):
    runs = Reader(folder)()
    return json.loads(json.dumps(contents(runs, Pictures(runs, 10**6), "runs"), allow_nan=False))


def unpacked(text, kind):
    numbers = array(kind)
    numbers.frombytes(base64.b64decode(text))
    return numbers.tolist()


def test_numbers_arrive_as_they_were(tmp_path):
    write_run(tmp_path / "a", [losses(10, 1.5), distance(10, 4.25), losses(20, None), distance(20, 2.5, steps=20)], config())
    [run] = (data := data_of(tmp_path))["runs"]
    assert unpacked(run["steps"], "d") == [10, 20] and unpacked(run["seconds"], "f") == [0, 10]
    at, values, made = run["series"]["fd-digits@100"]
    assert unpacked(run["at"][at], "I") == [0, 1] and unpacked(values, "f") == [4.25, 2.5]
    assert [data["passports"][number]["sampler"]["grid"]["steps"] for number in made] == [50, 20]
    at, values, made = run["series"]["loss"]
    assert made is None and unpacked(values, "f")[0] == 1.5 and unpacked(values, "f")[1] != unpacked(values, "f")[1]


def test_only_keys_that_differ_and_each_once(tmp_path):
    data = data_of(sweep(tmp_path))
    assert data["keys"] == ["optimizer.lr", "schedule", "schedule.beta_start", "schedule.s"]
    assert data["telling"] == ["schedule", "optimizer.lr"]
    assert data["runs"][0]["config"] == {"optimizer.lr": 0.001, "schedule": "Cosine", "schedule.s": 0.008}
    assert data["common"]["optimizer.betas"] == "[0.9, 0.999]" and data["common"]["steps"] == 100


def test_a_setting_that_its_class_does_not_imply_is_told():
    configs = [flat(config()), flat(config() | {"schedule": {"_target_": "a.Cosine", "s": 0.1}}), flat(config("Linear"))]
    keys, _ = compared(configs)
    assert "schedule.s" in telling(keys, configs) and "schedule.beta_start" not in telling(keys, configs)


def brought_along(folder, recorded=True):
    """A sweep over two words, of which the schedule brings a setting of two others along, and each run a path and a class of its own."""
    for schedule, lr in ((schedule, lr) for schedule in ("linear", "cosine") for lr in (0.001, 0.002)):
        name, two = f"{schedule}-{lr}", schedule == "linear"
        parts = {"objective": {"learned": two}, "network": {"out": 1 + two}, "logger": {"folder": f"runs/{name}/csv"}}
        typed = {"schedule": schedule, "optimizer.lr": str(lr), "name": name, "paths.runs": "x"}
        words = {"typed": typed, "choices": {"schedule": schedule, "network": "small"}}
        of_both = {"sampler": {"_target_": f"a.{schedule}{lr}"}} if recorded else {}
        write_run(folder / name, [losses(10, 1)], config(schedule.title(), lr) | parts | of_both, words=words if recorded else None)
    return folder


def test_a_sweep_over_two_words_tells_two(tmp_path):
    data = data_of(brought_along(tmp_path))
    assert data["telling"] == ["optimizer.lr", "schedule"]
    assert {run["config"]["schedule"] for run in data["runs"]} == {"linear", "cosine"} and data["common"]["network"] == "small"
    assert data["runs"][0]["words"]["optimizer.lr"] == "0.001" and "logger.folder" not in data["keys"]


def test_without_the_words_what_repeats_another_is_not_told(tmp_path):
    assert data_of(brought_along(tmp_path, recorded=False))["telling"] == ["schedule", "optimizer.lr"]


def test_places_and_names_are_not_told_and_may_group(tmp_path):
    """Typed or not, with a slash or without; what differs with them, such as the number of classes, is told."""
    for i, (root, cache) in enumerate((("/data/cats", ".cache"), ("/data/dogs", "fast"), ("birds", "fast"))):
        data = {"dataset": {"root": root, "cache": cache}, "guidance": {"ckpt": f"runs/{i}"}, "logger": {"name": f"n{i}"}}
        words = {"typed": {"dataset.root": root, "guidance.ckpt": f"runs/{i}"}, "choices": {}}
        write_run(tmp_path / str(i), [losses(10, 1)], config() | data | {"conditions": {"num_classes": 2 + i // 2}}, words=words)
    data = data_of(tmp_path)
    assert data["telling"] == ["conditions.num_classes"]
    assert {"dataset.root", "dataset.cache", "guidance.ckpt"} <= set(data["keys"])


def test_a_word_that_not_all_runs_recorded_does_not_hide_the_classes(tmp_path):
    write_run(tmp_path / "old", [losses(10, 1)], config("Linear"))
    write_run(tmp_path / "new", [losses(10, 1)], config(), words={"typed": {}, "choices": {"schedule": "cosine"}})
    assert [run["config"]["schedule"] for run in data_of(tmp_path)["runs"]] == ["Cosine", "Linear"]


@pytest.mark.parametrize(
    ("changed", "recipe", "labels"),
    [
        ({}, "main", ["0", "1", "2"]),
        ({"callbacks.samples.rows": 2}, "main", ["0", "1"]),
        ({"samplers.fast.grid.steps": 3}, "fast", ["0", "1", "2"]),
        ({}, "memorized-digits@70", []),
        ({"conditions.frequencies": "[0.5, 0.25, 0.25]"}, "main", []),
        ({"codec.data_shape": "[2]"}, "main", []),
        ({"conditions.num_classes": 0}, "main", []),
        ({"conditions.num_classes": "many"}, "main", []),
    ],
)
def test_the_rows_of_a_grid(changed, recipe, labels):
    """As Samples draws them: a row for each class, unless classes are left to chance or the items are points."""
    known = {"conditions.num_classes": 3, "conditions.frequencies": None, "callbacks.samples.rows": 10, "codec.data_shape": "[8, 8, 1]"}
    assert row_labels(known | changed, recipe) == labels


def test_one_run_and_none(tmp_path):
    assert data_of(tmp_path)["runs"] == []
    write_run(tmp_path / "a", [losses(10, 1)], config())
    assert data_of(tmp_path)["keys"] == []


def test_curves_are_thinned_beyond_the_budget_and_distances_never(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.dashboard.page.CURVES", 100)
    write_run(tmp_path / "a", [line for step in range(500) for line in (losses(step, step), distance(step, step))])
    data = data_of(tmp_path)
    [run] = data["runs"]
    assert CURVES > 100 and data["thinned"] == 25
    at, values, _ = run["series"]["loss"]
    assert len(unpacked(values, "f")) == 26 and unpacked(values, "f")[-1] == 499 == unpacked(run["at"][at], "I")[-1]
    assert len(unpacked(run["series"]["fd-digits@100"][1], "f")) == 500


def test_pictures_within_the_budget_are_the_telling_ones(tmp_path):
    write_run(tmp_path / "a", [losses(10, 1)], pictures=range(10, 60, 10))
    write_run(tmp_path / "b", [losses(10, 1)], pictures=(10,))
    runs = Reader(tmp_path)()
    data = contents(runs, Pictures(runs, 3 * 4 * len(png(0)) // 3 + 9))
    assert [step for step, _ in data["runs"][0]["samples"]["main"]] == [10, 50] and data["pictures"] == 6
    assert data["runs"][1]["samples"]["main"][0][1] == "data:image/png;base64," + base64.b64encode(png(10)).decode()


@pytest.mark.parametrize("n", range(1, 20))
def test_coarse_to_fine_is_an_order(n):
    assert sorted(coarse_to_fine(n)) == list(range(n)) and coarse_to_fine(n)[0] == n - 1


def test_the_page_holds_everything_and_points_nowhere(tmp_path):
    write_run(tmp_path / "a<script><b>", [distance(10, 4)], config() | {"note": "</script><script>alert(1)//<!--data-->"})
    write_run(tmp_path / "b", [distance(10, 4)], config())
    page = html(data_of(tmp_path))
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    assert json.loads(inside)["runs"][0]["name"] == "a<script><b>"
    template = (ROOT / "diffusion" / "dashboard" / "template.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", template) and "default-src 'none'" in template
    assert "plotly.js v" in page and "<!--script-->" not in page


def command(*words):
    return subprocess.run([sys.executable, "-m", "diffusion.dashboard", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command(tmp_path):
    result = command(str(sweep(tmp_path / "runs")), "--out", str(tmp_path / "here.html"))
    assert result.returncode == 0 and "4 runs" in result.stdout, result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["here.html"]
    assert command(str(tmp_path / "runs")).returncode == 0 and (tmp_path / "runs" / "dashboard.html").exists()


def test_a_mistake_is_one_sentence(tmp_path):
    result = command(str(tmp_path / "nowhere"))
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "nowhere" in result.stderr
    without = "import sys; sys.modules['plotly'] = None; from diffusion.dashboard.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", without, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "pip install" in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_package_brings_its_page():
    """What pyproject.toml says of data files covers what page.py reads."""
    declared = re.search(r'"diffusion.dashboard" = (\[.*\])', (ROOT / "pyproject.toml").read_text())[1]
    folder = ROOT / "diffusion" / "dashboard"
    brought = {path for pattern in json.loads(declared) for path in folder.glob(pattern)}
    assert brought == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
