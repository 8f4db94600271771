"""The page in a headless Chromium without a network: it draws, filters, slides and marks; the console stays silent.

Skipped where there is no Chromium (Debian: `apt-get install chromium`); what the page is given is tested without one.
"""

import json
import os
import time
from itertools import pairwise
from threading import Thread

import pytest
from bad_runs import LEFT_OUT, SHOWN_IN_PART, SILENT, bad_runs
from browser import CHROMIUM, Browser
from made_runs import config, distance, losses, png, sweep, write_run
from PIL import Image
from real_runs import BOUND, WITH_ERROR, real_run

from diffusion.dashboard import Pictures, Reader, contents, html
from diffusion.dashboard.read import read_run
from diffusion.dashboard.serve import server

pytest.importorskip("plotly", reason="the dashboard draws with plotly: pip install -e .[dashboard]")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not opened in a browser"),
    pytest.mark.xdist_group("chromium"),
]
CURVE = "document.querySelector('[data-key=\"fd-digits@100\"]')"
DRAWN = f"[...new Set({CURVE}.data.flatMap(trace => trace.owner ?? []).filter(Boolean).map(piece => piece.run.name))].sort()"
ROWS = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[0].textContent)"


def change(name, value, event="change"):
    """Set an input as a reader does."""
    return f"$('{name}').value = {json.dumps(value)}, $('{name}').dispatchEvent(new Event('{event}')), 1"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(folder)`: the page of the runs in `folder`, open; after the test nothing may have been said or asked for."""

    def show(folder):
        reader = Reader(folder)
        runs, file = reader(), tmp_path / "page.html"
        file.write_text(html(contents(runs, Pictures(runs, 10**6), "runs", warnings=reader.warnings)))
        browser.requests.clear()
        browser.complaints.clear()
        browser.open(file.as_uri())
        return browser

    yield show
    browser.js("1")
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture
def four(opened, tmp_path):
    return opened(sweep(tmp_path / "runs"))


def test_curves_are_drawn(four):
    four.until(f"{CURVE}.querySelectorAll('.js-line').length === 4")
    assert four.js("document.querySelectorAll('#curves .js-line').length") == 8
    assert four.js(DRAWN) == ["Cosine-0.001", "Cosine-0.002", "Linear-0.001", "Linear-0.002"]
    assert four.js(f"{CURVE}.data.flatMap(t => t.y).filter(y => y !== null).sort((a, b) => a - b)[0]") == 20


def test_a_filter_filters(four):
    four.js(change("filter", "lr<0.0015 schedule=Cosine", "input"))
    four.until(f"{DRAWN}.join() === 'Cosine-0.001'")
    assert four.js(ROWS) == ["Cosine-0.001"] and four.js("$('count').textContent").startswith("1 of 4 runs")
    four.js(change("filter", "schedule!=Cosine", "input"))
    four.until(f"{DRAWN}.join() === 'Linear-0.001,Linear-0.002'")
    four.js(change("filter", "nothing=1", "input"))
    four.until("$('complaint').textContent === 'No run has a key nothing in its configuration.'")
    assert len(four.js(ROWS)) == 4


def test_a_button_writes_the_filter(four):
    four.js("[...document.querySelectorAll('.facet button')].find(b => b.textContent === 'Linear').click()")
    assert four.js("$('filter').value") == "schedule=Linear" and four.js(ROWS) == ["Linear-0.002", "Linear-0.001"]
    four.js("[...document.querySelectorAll('.facet button')].find(b => b.textContent === 'Linear').click()")
    assert four.js("$('filter').value") == "" and len(four.js(ROWS)) == 4


def test_the_table_is_sorted_and_holds_what_differs(four):
    """Best first; the smallest number of all has another passport than the others, and comes last."""
    assert four.js(ROWS) == ["Cosine-0.001", "Linear-0.002", "Linear-0.001", "Cosine-0.002"]
    best = four.js("[...document.querySelectorAll('#table tbody tr')].map(row => +row.cells[3].textContent)")
    assert best == [30, 40, 50, 20] and "come last" in four.js("$('ranking').textContent")
    assert four.js("[...document.querySelectorAll('#table th')].map(cell => cell.textContent)")[-2:] == ["schedule", "lr"]


def test_another_passport_is_marked(four):
    warning = four.js(f"{CURVE}.previousElementSibling.textContent")
    assert "2 passports" in warning and "sampler.grid.steps" in warning and "50 / 20" in warning.replace("20 / 50", "50 / 20")
    dashes = four.js(f"{CURVE}.data.filter(t => t.owner).map(t => [t.line.dash, t.owner[0].passport.sampler.grid.steps])")
    assert sorted(set(map(tuple, dashes))) == [("dot", 20), ("solid", 50)]
    assert four.js("document.querySelectorAll('#table .mark').length") == 1
    assert four.js("document.querySelector('[data-key=loss]').previousElementSibling.hidden")
    four.js(change("passport", f"{50:012x}"))
    four.until(f"{CURVE}.previousElementSibling.hidden")
    assert len(four.js(DRAWN)) == 3 and four.js("document.querySelectorAll('#table .mark').length") == 0


def test_a_number_without_a_passport_is_marked_among_those_with_one(opened, tmp_path):
    write_run(tmp_path / "runs" / "a", [distance(0, 3), distance(5, 2)])
    write_run(tmp_path / "runs" / "b", [{"step": 0, "fd-digits@100": 1}, distance(5, 2)])
    write_run(tmp_path / "runs" / "c", [{"step": 0, "fd-digits@100": 1}])
    page = opened(tmp_path / "runs")
    assert page.js(ROWS) == ["a", "b", "c"] and page.js("ranked[1].best.value") == 2  # what can be compared goes first, of a run too
    assert "dot (none)" in page.js(f"{CURVE}.previousElementSibling.textContent")
    assert page.js("[...document.querySelectorAll('#table .mark')].map(mark => mark.textContent)") == ["⚠ none"]


def test_the_passport_is_shown_on_hover(four):
    four.js(f"{CURVE}.scrollIntoView({{block: 'center'}})")
    four.until(f"{CURVE}.querySelectorAll('.js-line').length === 4")
    spot = four.js(
        f"""(() => {{ const g = {CURVE}, box = g.getBoundingClientRect(), f = g._fullLayout, t = g.data[0];
        return [box.x + f.xaxis._offset + f.xaxis.d2p(t.x[1]), box.y + f.yaxis._offset + f.yaxis.d2p(t.y[1])]; }})()"""
    )
    for nudge in (3, 0):
        four("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0] + nudge, y=spot[1])
        time.sleep(0.1)
    four.until("$('tip').style.display === 'block'")
    tip = four.js("$('tip').textContent")
    assert "passport 000000000" in tip and "sampler: name DDIM, grid name Trailing, steps" in tip and "schedule=" in tip


PAPER = {
    "arxiv": "2006.11239",
    "where": "table 1",
    "dataset": "digits",
    "extractor": "digits",
    "results": [{"metric": "fid", "value": 3.17, "n": 100}, {"metric": "fid", "value": 40.0, "n": 50000}],
}
LINES = f"{CURVE}.data.filter(t => t.published !== undefined).map(t => [t.text[0], t.line.dash, t.y[0]])"


def named(folder, *names):
    """Runs that name PAPER, with the passports that a comparison looks at, of as many images as one of its numbers."""
    known = {"extractor": {"name": "digits"}, "reference": {"name": "digits", "split": "train", "n": 1797}}
    for name in names:
        records = [distance(step, 60 - step / 2, **known) for step in (0, 50, 100)]
        write_run(folder / name, records, config() | {"name": name, "published": PAPER})
    return folder


def test_published_numbers_are_lines(opened, tmp_path):
    """Solid where they may be compared, dashed where not; each once however many runs name it; a run that names none adds none."""
    folder = named(tmp_path / "runs", "a", "b")
    write_run(folder / "c", [distance(0, 50), distance(100, 30)], config(lr=0.002))
    page = opened(folder)
    page.until(f"{LINES}.length === 2")
    assert page.js(LINES) == [["fid 3.17 (2006.11239)", "solid", 3.17], ["fid 40 (2006.11239)", "dash", 40]]
    page.js(change("filter", "c", "input"))
    page.until(f"{LINES}.length === 0")
    assert "published" not in page.js("$('table').textContent")


def test_a_published_number_says_why_it_is_dashed(opened, tmp_path):
    page = opened(named(tmp_path / "runs", "a"))
    page.js(f"{CURVE}.scrollIntoView({{block: 'center'}})")
    page.until(f"{LINES}.length === 2")
    spot = page.js(
        f"""(() => {{ const g = {CURVE}, box = g.getBoundingClientRect(), f = g._fullLayout, t = g.data.find(t => t.published === false);
        return [box.x + f.xaxis._offset + f.xaxis.d2p(t.x[30]), box.y + f.yaxis._offset + f.yaxis.d2p(t.y[30])]; }})()"""
    )
    for nudge in (3, 0):
        page("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0] + nudge, y=spot[1])
        time.sleep(0.1)
    page.until("$('tip').style.display === 'block'")
    tip = page.js("$('tip').textContent")
    assert tip.startswith("published: fid 40 (2006.11239)")
    assert "not comparable: number of images 50,000 there, 100 here (metric.n=50000)" in tip
    for kind in ("mousePressed", "mouseReleased"):  # and a click on it picks no run out
        page("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)
    assert page.js("state.lit") is None


def test_the_slider_moves(four):
    sources = "[...document.querySelectorAll('.grids img')].map(image => image.src)"
    last = four.js(sources)
    assert len(last) == 4 and four.js("$('at').textContent") == "step 100"
    four.js(change("when", 0, "input"))
    assert four.js("$('at').textContent") == "step 50" and set(four.js(sources)).isdisjoint(last)
    four.until("[...document.querySelectorAll('.grids img')].every(image => image.naturalWidth === 1)")


def test_axes_smoothing_and_groups(four):
    four.js(change("y", "log"))
    four.js(change("x", "images"))
    assert four.js(f"[{CURVE}.layout.yaxis.type, {CURVE}.layout.xaxis.title.text]") == ["log", "images seen"]
    assert four.js(f"Math.max(...{CURVE}.data[0].x)") == 800
    raw = four.js(f"{CURVE}.data[0].y")
    four.js(change("smooth", 0.5, "input"))
    four.until(f"state.smooth === 0.5 && {CURVE}.data.at(-1).y.length > 0 && $('smoothed').textContent === '0.5'")
    smooth = four.js(f"{CURVE}.data.find(t => t.opacity === 1).y")
    assert smooth[1] == pytest.approx((raw[0] * 0.25 + raw[1] * 0.5) / 0.75)
    four.js(change("smooth", 0, "input"))
    four.until("$('smoothed').textContent === 'off'")
    four.js(change("group", "schedule"))
    four.js("$('mean').click()")
    means = four.js(f"{CURVE}.data.filter(t => t.owner).map(t => [t.owner[0].run.config.schedule, t.owner[0].passport.id, t.y[0]])")
    assert sorted(row[2] for row in means) == [70, 80, 95]  # 70 is Cosine-0.002, alone with its passport: no mean is over both
    four.js(change("x", "seconds"))  # in minutes
    means = four.js(f"{CURVE}.data.filter(t => t.owner).map(t => [t.y[2], t.x[2]])")
    assert sorted(means) == [[20, pytest.approx(400 / 60)], [30, 300 / 60], [45, 150 / 60]]


def test_the_sections_below_are_drawn_when_seen(four):
    for name in ("sweep", "quarters"):
        four.js(f"document.querySelector('[data-draw={name}]').scrollIntoView()")
        four.until(f"document.querySelectorAll('[data-draw={name}] .js-line').length >= 4")
    assert four.js("$('profiles').hidden")


def test_the_words_of_the_command_line_filter(opened, tmp_path):
    """Those that were recorded, typed or not, and in runs without them the names of the classes."""
    for name in ("Linear", "Cosine"):
        said = {"typed": {"optimizer.lr": "1e-3"}, "choices": {"schedule": name.lower(), "network": "digits", "metric": "[fd_digits,kid]"}}
        write_run(tmp_path / "runs" / f"new-{name}", [losses(10, 1)], config(name), words=said)
        write_run(tmp_path / "runs" / f"old-{name}", [losses(10, 1)], config(name, lr=0.002))
    page = opened(tmp_path / "runs")
    found = {
        "schedule=cosine": ["new-Cosine", "old-Cosine"],
        "schedule=Linear": ["new-Linear", "old-Linear"],
        "network=digits lr=1e-3": ["new-Cosine", "new-Linear"],
        "metric=[fd_digits,kid] schedule=linear": ["new-Linear"],
        "lr=0.002 schedule=linear,cosine": ["old-Cosine", "old-Linear"],
    }
    for words, names in found.items():
        page.js(change("filter", words, "input"))
        page.until(f"state.filter === {json.dumps(words)} && shown.map(run => run.name).sort().join() === {json.dumps(','.join(names))}")


def test_after_a_filter_only_what_is_left_is_there(opened, tmp_path):
    """Curves, legend, pictures and sections of the runs that were filtered out go away, and come back."""
    write_run(tmp_path / "runs" / "a", [distance(0, 3), distance(5, 2)], config(), pictures=(5,))
    write_run(tmp_path / "runs" / "b", [losses(10, 1), losses(20, 0.5), {"step": 20, "own": 1}], config("Linear"), pictures=(10, 20))
    page = opened(tmp_path / "runs")
    names = "[...document.querySelectorAll('#legend > span')].map(entry => entry.textContent)"
    chips = "[...document.querySelectorAll('#charts button')].map(button => button.textContent)"
    assert page.js(names) == ["a", "b"] and page.js(chips) == ["fd-digits@100", "loss", "own"]
    page.js(change("filter", "schedule=cosine", "input"))
    page.until(f"{chips}.join() === 'fd-digits@100'")
    assert page.js(names) == ["a"] and page.js("$('quarters').hidden && $('when').hidden && $('parallel').hidden")
    assert page.js("document.querySelectorAll('.chart').length") == 1
    page.js(change("filter", "", "input"))
    page.until(f"{chips}.length === 3 && !$('quarters').hidden && !$('when').hidden")


def test_the_best_or_the_last_step_that_all_measured(opened, tmp_path):
    """A longer run wins by its best, and not at the step that both reached."""
    write_run(tmp_path / "runs" / "long", [distance(step, value) for step, value in ((0, 99), (10, 50), (20, 9))])
    write_run(tmp_path / "runs" / "short", [distance(step, value) for step, value in ((0, 98), (5, 20), (10, 30))])
    page = opened(tmp_path / "runs")
    assert page.js(ROWS) == ["long", "short"] and "whichever step" in page.js("$('ranking').textContent")
    page.js(change("at_step", "same"))
    assert page.js(ROWS) == ["short", "long"] and "at step 10, " in page.js("$('ranking').textContent")
    assert page.js("ranked.map(run => run.best.value)") == [30, 50]


def test_an_axis_is_logarithmic_where_the_numbers_ask_for_it(opened, tmp_path):
    write_run(
        tmp_path / "runs" / "a",
        [distance(0, 487), distance(5, 3), losses(5, 1), losses(6, 0.5), {"step": 1, "negative": -1}, {"step": 2, "negative": 99}],
    )
    page = opened(tmp_path / "runs")
    page.js("[...document.querySelectorAll('#charts button')].find(button => button.textContent === 'negative').click()")
    kinds = "['fd-digits@100', 'loss', 'negative'].map(key => document.querySelector(`[data-key='${key}']`).layout?.yaxis.type)"
    page.until(f"{kinds}.join() === 'log,linear,linear'")
    page.js(change("y", "linear"))
    page.until(f"{kinds}.join() === 'linear,linear,linear'")


def test_the_names_of_a_sweep_s_axes_do_not_overlap(opened, tmp_path):
    """Eight settings whose names are longer than the axes are apart."""
    keys = [f"a_group_{i}.its_stage.its_extraordinarily_long_setting_{i}" for i in range(8)]
    for n in range(9):
        parts = {f"a_group_{i}": {"its_stage": {f"its_extraordinarily_long_setting_{i}": int(i == n)}} for i in range(8)}
        write_run(tmp_path / "runs" / str(n), [losses(10, n + 1)], parts, words={"typed": dict.fromkeys(keys, "0"), "choices": {}})
    page = opened(tmp_path / "runs")
    page.js("document.querySelector('[data-draw=sweep]').scrollIntoView()")
    page.until("document.querySelectorAll('[data-draw=sweep] .annotation-text').length > 9")
    boxes = "[...document.querySelectorAll('[data-draw=sweep] .annotation-text')].slice(0, 9).map(n => n.getBoundingClientRect())"
    found = page.js(f"{boxes}.map(box => [box.left, box.right])")
    assert len(found) == 9 and all(right < left for (_, right), (left, _) in pairwise(found))


def test_a_sweep_has_eight_axes_and_says_how_many_are_left_out(opened, tmp_path):
    """Of eleven settings that differ, the typed ones first; long values are cut to the room that there is."""
    for n in range(12):
        settings = {f"setting_{i:02}": f"{'a_very_long_word_' * 3}{int(i == n)}" for i in range(11)}
        words = {"typed": dict.fromkeys(["setting_10", "setting_09"], "x"), "choices": {}}
        write_run(tmp_path / "runs" / f"{n:02}", [losses(10, n + 1)], settings, words=words)
    page = opened(tmp_path / "runs")
    page.js("document.querySelector('[data-draw=sweep]').scrollIntoView()")
    page.until("document.querySelectorAll('[data-draw=sweep] .annotation-text').length > 9")
    texts = page.js("[...document.querySelectorAll('[data-draw=sweep] .annotation-text')].map(n => n.textContent)")
    assert texts[:3] == ["setting_09", "setting_10", "setting_00"] and texts[7:9] == ["setting_05", "loss"]
    assert "; 3 more differ and are left out." in page.js("document.querySelector('#parallel .soft').textContent")
    boxes = "[...document.querySelectorAll('[data-draw=sweep] .annotation-text')].slice(9).map(n => n.getBoundingClientRect())"
    found = page.js(f"{boxes}.map(box => [box.left, box.right, box.top])")
    above = sorted(box for box in found if box[2] == min(top for *_, top in found))
    assert len(above) >= 8 and all(right < left for (_, right, _), (left, *_) in pairwise(above))


def test_a_run_that_is_silent_for_long_has_stopped(opened, tmp_path):
    """Without a lock to ask: longer than three times its longest silence, and half a minute."""
    for name, age in (("now", 0), ("dead", 200)):
        folder = write_run(tmp_path / "runs" / name, [losses(step, 1) for step in range(1, 9)], config(steps=100))
        os.utime(folder / "metrics.jsonl", (time.time() - age,) * 2)
    page = opened(tmp_path / "runs")
    assert page.js("Object.fromEntries(data.runs.map(run => [run.name, progress(run)]))") == {"now": "running", "dead": "stopped"}


def test_any_key_may_group(opened, tmp_path):
    folder = sweep(tmp_path / "runs")
    page = opened(folder)
    assert page.js("[...$('group').options].map(option => option.value)") == ["", "schedule", "optimizer.lr"]
    page.js(change("other", "betas"))
    assert page.js("state.group") == "optimizer.betas" and page.js("$('legend').textContent") == "betas [0.9,0.999]"


def test_the_rows_of_a_grid_are_named(opened, tmp_path):
    own = config() | {"conditions": {"_target_": "a.Classes", "num_classes": 3, "frequencies": None}, "callbacks": {"samples": {"rows": 2}}}
    folder = write_run(tmp_path / "runs" / "a", [losses(10, 1)], own, pictures=(10,))
    (folder / "samples" / "nll-vlb@4-step=00000010.png").write_bytes(png(3))
    page = opened(tmp_path / "runs")
    named = "[...document.querySelectorAll('.rows span')].map(label => label.textContent)"
    assert page.js(named) == ["0", "1"]
    page.js(change("recipe", "nll-vlb@4"))
    assert page.js(named) == [] and page.js("document.querySelectorAll('.grids img').length") == 1


def test_the_names_of_rows_stand_beside_the_rows(opened, tmp_path):
    """Of a grid of 2 rows and 20 columns beside one of 10 rows, and of one whose rows are lower than a letter."""
    for name, classes, (rows, columns) in (("two", 2, (2, 20)), ("ten", 10, (10, 10)), ("low", 9, (9, 90))):
        own = {"conditions": {"_target_": "a.Classes", "num_classes": classes, "frequencies": None}, "callbacks": {"samples": {"rows": 10}}}
        folder = write_run(tmp_path / "runs" / name, [losses(10, 1)], config() | own)
        Image.new("L", (34 * columns, 34 * rows)).save(folder / "samples" / "main-step=00000010.png")
    page = opened(tmp_path / "runs")
    page.until("[...document.querySelectorAll('.grids img')].every(image => image.complete && image.clientHeight)")
    middle = "(node => { const box = node.getBoundingClientRect(); return [box.top, box.height]; })"
    for figure in range(3):
        [top, height] = page.js(f"{middle}(document.querySelectorAll('figure img')[{figure}])")
        names = page.js(f"[...document.querySelectorAll('figure')[{figure}].querySelectorAll('.rows span')].map({middle})")
        wanted = [top + height * (i + 0.5) / len(names) for i in range(len(names))]
        assert [at + tall / 2 for at, tall in names] == pytest.approx(wanted, abs=1)


def test_bad_runs_are_named_on_the_page_and_their_keys_harm_nothing(opened, tmp_path):
    page = opened(bad_runs(tmp_path / "runs"))
    said = page.js("$('warnings').textContent")
    assert "brackets is left out: " in said and all(name in said for name in [*LEFT_OUT, *SHOWN_IN_PART])
    assert page.js("shown.length") == 1 + len(SHOWN_IN_PART) + len(SILENT)
    for key in ("__proto__", "constructor"):
        page.js(f"[...document.querySelectorAll('#charts button')].find(button => button.textContent === '{key}').click()")
        page.js(f"document.querySelector('[data-key={key}]').scrollIntoView()")
        owners = f"document.querySelector('[data-key={key}]').data?.flatMap(trace => trace.owner ?? [])"
        page.until(f"{owners}.filter(Boolean).map(piece => piece.run.name).join() === 'prototype'")


def test_bands_and_terms_over_t(opened, tmp_path):
    for name in "ab":
        lines = [distance(step, 10 - step) | {"fd-digits@100/std": 0.5, "nll@100": 3, "nll@100/terms": [3, 2, 1]} for step in (0, 5)]
        write_run(tmp_path / "runs" / name, lines)
    page = opened(tmp_path / "runs")
    band = page.js(f"{CURVE}.data.find(t => t.fill === 'toself').y")
    assert band == [10.5, 5.5, 4.5, 9.5]
    page.js("document.querySelector('[data-draw=profiles]').scrollIntoView()")
    page.until("document.querySelectorAll('[data-draw=profiles] .js-line').length === 2")
    assert "fd-digits@100/std" not in page.js("data.scalars")


def test_real_metrics_have_bands_and_the_terms_their_passport(opened, tmp_path):
    """What the training itself writes: an error's band on each metric, terms over t that name the passport of their bound."""
    folder = real_run(tmp_path)
    page = opened(folder.parent)
    run = read_run(folder)
    for name in (*WITH_ERROR, f"{WITH_ERROR[0]}/second"):
        assert f"{name}/error" not in page.js("data.scalars") and name in page.js("data.scalars")
        values, errors = run.series[name].values, run.series[f"{name}/error"].values
        [piece] = page.js(f"pieces(data.runs[0], {json.dumps(name)}, 1).map(p => ({{high: p.high, low: p.low, made: p.passport.id}}))")
        assert piece["high"] == pytest.approx([v + e for v, e in zip(values, errors, strict=True)], rel=1e-5)
        assert piece["low"] == pytest.approx([v - e for v, e in zip(values, errors, strict=True)], rel=1e-5)
    assert {"evaluation_seconds", "loss"} <= set(page.js("data.scalars"))
    page.js(change("profile", f"{BOUND}/terms"))
    page.js("document.querySelector('[data-draw=profiles]').scrollIntoView()")
    page.until("document.querySelectorAll('[data-draw=profiles] .js-line').length === 1")
    made = page.js("document.querySelector('[data-draw=profiles]').data[0].owner[0].passport.id")
    assert made == run.series[BOUND].passports[-1]["id"]


def test_empty_states(opened, tmp_path):
    page = opened(tmp_path)
    assert "has recorded a number yet" in page.js("$('empty').textContent") and page.js("$('sections').hidden")
    assert "make train" in page.js("document.querySelector('#empty pre').textContent")
    write_run(tmp_path / "begun", [])
    page = opened(tmp_path)
    assert page.js(ROWS) == ["begun"]
    write_run(tmp_path / "one", [losses(10, 1)], config(), tail='{"step": 20, "lo')
    page = opened(tmp_path)
    page.until("document.querySelectorAll('[data-key=loss] .point').length === 1")


def test_the_live_page_follows(browser, tmp_path):
    folder = sweep(tmp_path / "runs")
    with server(folder, 0) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        browser.complaints.clear()
        browser.open(f"http://127.0.0.1:{running.server_address[1]}/")
        browser.until("[...document.querySelectorAll('.grids img')].filter(image => image.naturalWidth === 1).length === 4")
        browser.js(change("filter", "new", "input"))
        write_run(folder / "new", [distance(10, 5)], config())
        browser.until(f"{ROWS}.join() === 'new'")
        browser.open("about:blank")
        running.shutdown()
    assert browser.complaints == []
