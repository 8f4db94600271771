"""The live page's answers."""

import http.client
import json
from threading import Thread

import pytest
from made_runs import losses, png, sweep, write_run

from diffusion.dashboard.serve import server
from diffusion.support.errors import UserError

pytest.importorskip("plotly", reason="the dashboard draws with plotly: pip install -e .[dashboard]")


@pytest.fixture
def served(tmp_path):
    """(folder, ask), ask(path) -> (status, body)."""
    with server(sweep(tmp_path / "runs"), 0) as running:
        Thread(target=running.serve_forever, daemon=True).start()

        def ask(path, host="localhost"):
            connection = http.client.HTTPConnection("127.0.0.1", running.server_address[1], timeout=30)
            connection.request("GET", path, headers={"Host": f"{host}:{running.server_address[1]}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

        yield tmp_path / "runs", ask
        running.shutdown()


def test_data_follow_the_folder(served):
    folder, ask = served
    status, body = ask("/data.json")
    data = json.loads(body)
    assert status == 200 and data["live"] and len(data["runs"]) == 4
    assert ask(f"/data.json?since={data['stamp']}") == (204, b"")
    write_run(folder / "new", [losses(10, 1)])
    status, body = ask(f"/data.json?since={data['stamp']}")
    assert status == 200 and len(json.loads(body)["runs"]) == 5


def test_page_and_pictures(served):
    _, ask = served
    assert ask("/")[0] == 200 and b"plotly.js v" in ask("/")[1]
    address = json.loads(ask("/data.json")[1])["runs"][0]["samples"]["main"][0][1]
    assert ask("/" + address) == (200, png(50))


@pytest.mark.parametrize(
    "path", ["/samples/Cosine-0.001/..%2Fconfig.yaml", "/samples/../x", "/config.yaml", "/Cosine-0.001/metrics.jsonl", "/a"]
)
def test_nothing_else_is_served(served, path):
    assert served[1](path)[0] == 404


def test_a_foreign_page_is_not_answered(served):
    assert served[1]("/data.json", host="evil.example")[0] == 403


def test_a_taken_port_is_one_sentence(tmp_path):
    with server(tmp_path, 0) as first, pytest.raises(UserError, match="--serve"):
        server(tmp_path, first.server_address[1])
