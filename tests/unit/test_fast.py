"""The small runs for cifar10_fast: each candidate trains, the file is gone on with or refused, mistakes are said before data are read."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import fast
from diffusion.support.errors import Refused

LINE = {"candidate": "edm", "seed": 0, "steps": 2, "fd": 3.0, "errors": {str(std): [1.0] * len(fast.LEVELS) for std in fast.STDS}}


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    return SimpleNamespace(images=random.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), labels=random.integers(0, 10, 64))


@pytest.mark.parametrize("name", fast.CANDIDATES)
def test_a_candidate_trains_and_is_measured(name, data, monkeypatch):
    monkeypatch.setattr(fast, "BATCH", 4)
    monkeypatch.setattr(fast, "TEST", 4)
    model, averages = fast.trained(fast.CANDIDATES[name], 0, 2, data)
    assert [average.std for average in averages] == list(fast.STDS)
    assert all(0 < error < 10 for error in fast.errors(model, data))


def called(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["fast", *words])
    fast.main()


def test_runs_that_are_done_are_not_made_again(tmp_path, monkeypatch, capsys):
    """Nor lost: a new one is beside them, in whole lines, however the last one ended."""
    out, made = tmp_path / "fast.jsonl", []

    def measured(name, seed, steps, *others):
        made.append((name, seed))
        return {**LINE, "candidate": name, "seed": seed}

    monkeypatch.setattr(fast, "measured", measured)
    for name in ("CIFAR10", "FrechetDistance", "ResNet56"):
        monkeypatch.setattr(fast, name, lambda **settings: SimpleNamespace(load=lambda: None, setup=lambda *others: None))
    (tmp_path / "weights").touch()
    out.write_text(json.dumps(LINE))
    words = ["edm", "flow", f"--weights={tmp_path}/weights", "--seeds", "0", "--steps", "2", "--out", str(out)]
    called(monkeypatch, *words)
    called(monkeypatch, *words)
    assert made == [("flow", 0)] and fast.runs_in(out) == [LINE, {**LINE, "candidate": "flow"}]
    assert "| flow | 1 | 3 | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"candidate": "edm", "se', '{"foreign": 1}\n', "[]\n"], ids=["half", "foreign", "list"])
def test_a_file_that_is_not_of_runs_is_refused_and_stays(content, tmp_path, monkeypatch, capsys):
    out = tmp_path / "fast.jsonl"
    out.write_text(content)
    with pytest.raises(Refused):
        called(monkeypatch, "edm", "--weights=w", "--out", str(out))
    assert f"{out} has a line that is no run" in capsys.readouterr().err and out.read_text() == content


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edm", "--weights=nowhere.th"], "--weights nowhere.th is no file"),
        (["flows", "--weights=w"], "flows is no candidate: edm, edm_later"),
        (["edm", "--weights=w", "--steps=-5"], "--steps should be at least 1"),
        (["edm", "--weights=w", "--seeds=-1"], "--seeds at least 0"),
    ],
)
def test_what_is_wrong_is_said_at_once(words, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, *words, f"--out={tmp_path}/fast.jsonl")
    assert ended.value.code and said in capsys.readouterr().err and not list(tmp_path.iterdir())
