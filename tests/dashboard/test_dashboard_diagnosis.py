"""diagnose.json on the page: what is in it, and files that are none."""

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


def written(folder, diagnosis):
    """Two runs, the first of them with a diagnosis."""
    write_run(folder / "a", [losses(10, 1.0), losses(20, 0.5)], config())
    write_run(folder / "b", [losses(10, 1.0)], config())
    (folder / "a" / "diagnose.json").write_text(diagnosis if isinstance(diagnosis, str) else json.dumps(diagnosis))
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


@pytest.mark.skipif(not CHROMIUM, reason="no browser here")
def test_the_page_draws_it(tmp_path):
    """A line for each column in the Gaussian's units, and a list whose words are text."""
    runs = Reader(written(tmp_path / "runs", GOOD))()
    (tmp_path / "page.html").write_text(html(contents(runs, Pictures(runs, 0), "runs")))
    browser = Browser(tmp_path / "profile")
    try:
        browser.open((tmp_path / "page.html").as_uri())
        browser.js("$('diagnoses').scrollIntoView()")
        node = "document.querySelector('[data-draw=diagnoses]')"
        browser.until(f"{node}.querySelectorAll('.js-line').length === 2")
        assert browser.js(f"{node}.data.map(t => t.y)")[0] == pytest.approx([0.5, 0.5, 1.0])
        items = browser.js("[...document.querySelectorAll('#findings li')].map(li => li.textContent)")
        assert items == ["Is it <b>? yes: a", "Is it <b>? no: a"]
        assert browser.complaints == []
    finally:
        browser.close()
