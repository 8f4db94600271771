"""One bad run does not take the page from the others: what cannot be shown is named, and nothing that is not the run's is served."""

import http.client
import json
import os
from threading import Thread
from urllib.parse import quote

import pytest
from bad_runs import LEFT_OUT, SHOWN_IN_PART, SILENT, bad_runs
from made_runs import png

from diffusion.dashboard import Pictures, Reader, contents
from diffusion.dashboard.serve import server

SECRET = png(77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bad_runs(tmp_path_factory.mktemp("bad") / "runs")


@pytest.fixture(scope="module")
def reader(folder):
    reader = Reader(folder)
    reader()
    return reader


def test_the_others_are_shown_and_the_bad_ones_named(reader):
    runs = reader()
    assert {run.name for run in runs} == {"good", *SHOWN_IN_PART, *SILENT}
    for names, words in ((LEFT_OUT, " is left out: "), (SHOWN_IN_PART, ": ")):
        for name in names:
            [warning] = [warning for warning in reader.warnings if warning.startswith(name + words)]
            assert "\n" not in warning and len(warning) < 300 and warning.endswith(".")
    assert len(reader.warnings) == len(LEFT_OUT) + len(SHOWN_IN_PART)


def test_a_bad_run_is_read_once(reader, monkeypatch):
    monkeypatch.setattr("diffusion.dashboard.read.read_run", lambda folder: pytest.fail(f"{folder.name} was read again"))
    assert len(reader()) == 1 + len(SHOWN_IN_PART) + len(SILENT)


def test_the_page_is_strict_json_without_what_is_not_the_run_s(reader):
    runs = reader()
    text = json.dumps(contents(runs, Pictures(runs, 10**7), warnings=reader.warnings), allow_nan=False)
    data = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    samples = {run["name"]: run["samples"] for run in data["runs"]}
    assert samples["good"]["main"] and not any(samples[name] for name in ("picture-out", "picture-pipe", "pictures-out"))
    assert len(data["warnings"]) == len(LEFT_OUT) + len(SHOWN_IN_PART)


def test_a_picture_that_became_a_link_is_not_served(folder):
    """Listed as a file, and exchanged before it is asked for."""
    pytest.importorskip("plotly")
    with server(folder, 0) as running:
        Thread(target=running.serve_forever, daemon=True).start()

        def ask(path):
            connection = http.client.HTTPConnection("127.0.0.1", running.server_address[1], timeout=60)
            connection.request("GET", path, headers={"Host": "localhost:1"})
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert ask("/")[0] == 200 and ask("/data.json")[0] == 200
        name = "main-step=00000010.png"
        assert ask(f"/samples/good/{name}") == (200, png(10))
        for run in ("picture-out", "pictures-out", "picture-pipe"):
            assert ask(f"/samples/{run}/{name}")[0] == 404
        picture = folder / "good" / "samples" / name
        before = picture.read_bytes()
        picture.unlink()
        picture.symlink_to(folder / "secret.png")
        status, body = ask(f"/samples/good/{quote(name)}")
        assert status == 404 and SECRET not in body
        picture.unlink()
        os.mkfifo(picture)
        assert ask(f"/samples/good/{name}")[0] == 404
        picture.unlink()
        picture.write_bytes(before)
        running.shutdown()
