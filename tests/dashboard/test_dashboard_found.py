"""diagnose.json and pareto.json on the page: what is in them, and files that are none."""

import json

import pytest
from browser import CHROMIUM, Browser
from made_runs import config, losses, write_run

from diffusion.dashboard import Pictures, Reader, contents, html

pytest.importorskip("plotly", reason="the dashboard draws with plotly: pip install -e .[dashboard]")
FINDING = {
    "question": "Is it <b>?",
    "answer": "yes",
    "normal": True,
    "seen": "a",
    "rule": "r",
    "reference": "p",
    "remedy": "m",
    "numbers": {},
}
GOOD = {
    "step": 20,
    "log_snr": [5.0, 0.0, -5.0],
    "errors": {
        "model/train": {"mean": [0.5, 0.2, 0.1], "error": [0.1, 0.1, 0.1]},
        "exact/train": {"mean": [0.0, 0.1, None], "error": [0.1, 0.1, 0.1]},
        "gaussian": {"mean": [1.0, 0.4, 0.1]},
    },
    "findings": [FINDING, FINDING | {"answer": "no", "normal": False}],
}


WAY = {
    "label": "sampler=<b> grid.steps=2",
    "calls": 2,
    "gflop": 0.5,
    "ms": 3.0,
    "value": 9.0,
    "half_width": 0.5,
    "images": 80,
    "state": "on the front",
}
FRONT = {
    "key": "fd-digits@40",
    "higher": False,
    "unit": "calls",
    "sentences": ["The best for 2 calls is <b>."],
    "points": [
        WAY,
        WAY | {"calls": 4, "value": 3.0},
        WAY | {"calls": 4, "value": 7.0, "state": "behind, not told apart"},
        WAY | {"calls": 3, "value": 20.0, "state": "dropped"},
    ],
}


def written(folder, found, name="diagnose"):
    """Two runs, the first of them with a file of what was found."""
    write_run(folder / "a", [losses(10, 1.0), losses(20, 0.5)], config())
    write_run(folder / "b", [losses(10, 1.0)], config())
    (folder / "a" / f"{name}.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return folder


def test_a_diagnosis_arrives(tmp_path):
    reader = Reader(written(tmp_path, GOOD))
    runs = contents(reader(), Pictures([], 0), "runs")["runs"]
    assert runs[0]["diagnosis"]["errors"] == {name: column["mean"] for name, column in GOOD["errors"].items()}
    assert runs[0]["diagnosis"]["findings"][1] == {k: v for k, v in GOOD["findings"][1].items() if k != "numbers"}
    assert runs[1]["diagnosis"] == {} and not reader.warnings
    (tmp_path / "a" / "diagnose.json").write_text(json.dumps(GOOD | {"step": 30}))
    assert reader()[0].diagnosis["step"] == 30


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "[]",
        "[" * 100_000,
        GOOD | {"log_snr": [1.0]},
        GOOD | {"log_snr": [1.0, 2.0, float("nan")]},
        GOOD | {"log_snr": [1.0, 2.0, 10**400]},
        GOOD | {"errors": {"model/train": {"mean": "abc"}}},
        GOOD | {"findings": [{"question": "?"}]},
        GOOD | {"step": "many"},
    ],
    ids=range(9),
)
def test_what_is_none_is_said(tmp_path, bad):
    """The run is shown without it."""
    reader = Reader(written(tmp_path, bad))
    runs = reader()
    assert [run.name for run in runs] == ["a", "b"] and runs[0].diagnosis == {}
    assert ["diagnose.json" in warning for warning in reader.warnings] == [True]
    html(contents(runs, Pictures(runs, 0), "runs"))


def test_a_front_arrives(tmp_path):
    reader = Reader(written(tmp_path, FRONT | {"command": None}, "pareto"))
    runs = contents(reader(), Pictures([], 0), "runs")["runs"]
    assert runs[0]["front"] == FRONT and runs[1]["front"] == {} and not reader.warnings


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        {},
        FRONT | {"points": [WAY | {"value": None}]},
        FRONT | {"points": [WAY | {"calls": "2"}]},
        FRONT | {"points": [WAY | {"ms": 10**400}]},
        FRONT | {"points": [{"label": "a"}]},
        FRONT | {"sentences": None},
        FRONT | {"unit": "toString"},
        FRONT | {"unit": []},
    ],
    ids=range(10),
)
def test_what_is_no_front_is_said(tmp_path, bad):
    reader = Reader(written(tmp_path, bad, "pareto"))
    runs = reader()
    assert [run.name for run in runs] == ["a", "b"] and runs[0].front == {}
    assert ["pareto.json" in warning for warning in reader.warnings] == [True]


@pytest.fixture
def page(tmp_path):
    browser = Browser(tmp_path / "profile")

    def opened(folder):
        runs = Reader(folder)()
        (tmp_path / "page.html").write_text(html(contents(runs, Pictures(runs, 0), "runs")))
        browser.open((tmp_path / "page.html").as_uri())
        return browser

    yield opened
    assert browser.complaints == []
    browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="no browser here")
def test_the_page_draws_a_diagnosis(tmp_path, page):
    """A line for each column in the Gaussian's units, and a list whose words are text."""
    browser = page(written(tmp_path / "runs", GOOD))
    browser.js("$('diagnoses').scrollIntoView()")
    node = "document.querySelector('[data-draw=diagnoses]')"
    browser.until(f"{node}.querySelectorAll('.js-line').length === 2")
    assert browser.js(f"{node}.data.map(t => t.y)")[0] == pytest.approx([0.5, 0.5, 1.0])
    items = browser.js("[...document.querySelectorAll('#findings li')].map(li => li.textContent)")
    assert items == ["Is it <b>? yes: a", "Is it <b>? no: a"] and browser.js("$('fronts').hidden")


@pytest.mark.skipif(not CHROMIUM, reason="no browser here")
def test_the_page_draws_a_front(tmp_path, page):
    """The front as a line from the cheapest on, the others beside it, and what was said."""
    browser = page(written(tmp_path / "runs", FRONT, "pareto"))
    browser.js("$('fronts').scrollIntoView()")
    node = "document.querySelector('[data-draw=fronts]')"
    browser.until(f"{node}.querySelectorAll('.js-line').length === 1")
    behind, front = browser.js(f"{node}.data.map(t => [t.x, t.y, t.error_y.array])")
    assert front == [[2, 4], [9, 3], [0.5, 0.5]] and behind == [[3, 4], [20, 7], [0.5, 0.5]]
    assert "sampler=<b> grid.steps=2: fd-digits 9 ± 0.5" in browser.js(f"{node}.data[1].owner[0].says")
    assert browser.js("[...document.querySelectorAll('#ways li')].map(li => li.textContent)") == ["The best for 2 calls is <b>."]
    assert browser.js("$('diagnoses').hidden")
