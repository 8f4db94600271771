"""The GPU check's harness: what is done is not done again, the report is whole whenever it is killed, parts fail or take too long."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composing import composed
from gpu_checks import KEY, Made, checked, report

from benchmarks.gpu_check import keeping
from benchmarks.gpu_check.__main__ import arguments, set_aside
from benchmarks.gpu_check.check import Check, Failed, Overrun
from benchmarks.gpu_check.commands import ROOT
from benchmarks.gpu_check.parts.bench import Bench
from benchmarks.gpu_check.parts.distance import Distances
from benchmarks.gpu_check.parts.tests import Pytest
from benchmarks.gpu_check.parts.training import Training, minutes_left
from benchmarks.gpu_check.plugin import results
from benchmarks.gpu_check.sizes import FULL, PICTURES, SMALL, filled, size
from diffusion.support.errors import UserError


def raising(error):
    def work(check):
        raise error

    return work


def test_what_is_done_is_not_done_again(tmp_path):
    one, two = Made(name="one"), Made(raising(Overrun("later")), name="two")
    assert checked(tmp_path, one, two).go(["one", "two"]) is None
    two.work = lambda check: "now"
    assert checked(tmp_path, one, two).go(["one", "two"]) is True
    assert (one.calls, two.calls) == (["one"], ["two"] * 2)
    assert "| the part two | done |" in report(tmp_path) and "now" in report(tmp_path)


def test_a_stage_that_is_done_is_kept_with_its_seconds(tmp_path):
    made = []

    def work(check):
        found = check.stage("first", lambda: made.append(1) or {"value": 3})
        assert found["value"] == 3 and found["seconds"] >= 0
        raise Failed("not yet")

    for _ in range(2):
        assert checked(tmp_path, Made(work)).go(["made"]) is False
    assert made == [1]


def test_a_part_that_fails_does_not_take_the_others_along(tmp_path):
    parts = Made(raising(Failed("3 failed")), "one"), Made(raising(ZeroDivisionError("by zero")), "two"), Made(name="three")
    assert checked(tmp_path, *parts).go(["one", "two", "three"]) is False
    said = report(tmp_path)
    assert "| failed | 0 | 3 failed |" in said and "ZeroDivisionError: by zero" in said and "| the part three | done |" in said


def test_a_part_alone(tmp_path):
    parts = [Made(name=name) for name in ("one", "two")]
    assert checked(tmp_path, *parts).go(["two"]) is True
    assert [part.calls for part in parts] == [[], ["two"]] and "| the part one | to do |" in report(tmp_path)


@pytest.mark.parametrize("other", [{"code": "2"}, {"device": "cuda: H"}, {"size": "full"}], ids=str)
def test_another_code_device_or_size_begins_anew(tmp_path, other):
    part = Made()
    checked(tmp_path, part).go(["made"])
    (tmp_path / "out/tests.jsonl").write_text("{}\n")
    again = checked(tmp_path, part, key=KEY | other)
    assert again.state.before == KEY and again.state.parts == {}
    set_aside(tmp_path / "out")
    again.go(["made"])
    assert len(part.calls) == 2 and "Begun anew" in report(tmp_path) and not (tmp_path / "out/tests.jsonl").exists()
    assert "1 times" in (tmp_path / "out/before.md").read_text()


SAVING = "import time\ntry:\n  print('begun', flush=True)\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  open({!r}, 'w').write('saved')"
DEAF = "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)"


@pytest.mark.parametrize("file", ["report.md", "kept-mine.tar.gz", "results.json"])
def test_a_folder_of_something_else_is_refused_and_stays(file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("mine")
    with pytest.raises(UserError, match="is not empty, and no check has been there"):
        checked(tmp_path, Made())
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("content", ['{"key": {"cod', '{"mine": 1}', "[]", '{"key": 3}'])
def test_a_state_that_no_check_has_written_is_refused_by_name(content, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json is damaged, or not a check's"):
        checked(tmp_path, Made())


def test_a_command_that_outlives_its_part_is_ended_as_ctrl_c_does_and_keeps_what_it_has(tmp_path):
    file, started = tmp_path / "file", time.monotonic()
    check = checked(tmp_path, Made(lambda check: check.ran("long", "-c", SAVING.format(str(file)))), minutes=0.05)
    assert check.go(["made"]) is None and file.read_text() == "saved"
    assert time.monotonic() - started < 60 * 0.05 + 3 and "long was ended when the part's time was over" in report(tmp_path)


def test_one_that_hears_nothing_is_ended_too(tmp_path):
    started = time.monotonic()
    assert checked(tmp_path, Made(lambda check: check.ran("deaf", "-c", DEAF)), minutes=0.03).go(["made"]) is None
    assert time.monotonic() - started < 60 * 0.03 + 3


def test_what_a_failed_command_said_last_is_in_the_report(tmp_path):
    part = Made(lambda check: check.ran("bad", "-c", "import sys; print('a'); sys.exit('error: no such thing')"))
    assert checked(tmp_path, part).go(["made"]) is False
    assert "bad ended with exit code 1: error: no such thing" in report(tmp_path)


KILLED = """
import sys
from pathlib import Path
from gpu_checks import Made, checked
def work(check):
    for i in range(1000):
        check.stage(str(i), lambda: {"value": i, "log": str(check.ran("nap", "-c", "import time; time.sleep(0.3)"))})
    return "well"
checked(Path(sys.argv[1]), Made(work), minutes=9).go(["made"])
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_killed_at_any_instant_the_report_is_whole_and_the_next_call_goes_on(tmp_path, signum):
    done = 0
    for seconds in (0.2, 0.5, 0.9):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], env=environ, stderr=subprocess.DEVNULL)
        state = tmp_path / "out/state.json"
        until = time.monotonic() + 60
        while (before := len(stages(state))) <= done and time.monotonic() < until:
            time.sleep(0.02)
        assert before > done
        time.sleep(seconds)
        process.send_signal(signum)
        process.wait()
        done = len(stages(state))
        assert report(tmp_path) and [found["value"] for found in stages(state).values()] == list(range(done))
    assert not [
        line
        for line in subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout.splitlines()
        if "time.sleep(0.3" in line
    ]


def stages(file):
    return json.loads(file.read_text())["parts"].get("made", {"stages": {}})["stages"] if file.exists() else {}


TESTS = """
import os, pathlib, pytest, time
pytestmark = pytest.mark.cuda
def test_one(device): pathlib.Path({ran!r}).open("a").write("one ")
def test_two(device): assert device == "gpu", "no such device"
def test_dies(device): os._exit(139)
def test_breaks(device): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_after(device): pathlib.Path({ran!r}).open("a").write(f"after in {{os.getpid()}} ")
@pytest.mark.skip(reason="no second one")
def test_skipped(device): pass
"""


DEVICE = """
import pytest
def pytest_addoption(parser): parser.addoption("--device")
def pytest_configure(config): config.addinivalue_line("markers", "cuda: there")
@pytest.fixture
def device(request): return request.config.getoption("--device")
"""


def test_each_test_comes_to_one_end_in_however_many_processes(tmp_path):
    (folder := tmp_path / "tests").mkdir()
    (folder / "conftest.py").write_text(DEVICE)
    (folder / "test_made.py").write_text(TESTS.format(ran=str(ran := tmp_path / "ran")))
    for _ in range(2):
        assert checked(tmp_path, Pytest([str(folder)]), minutes=3).go(["tests"]) is False
        assert "2 passed, 2 failed, 1 died, 1 skipped |" in report(tmp_path)  # of the part, at once
    found = {name.rpartition("::")[2]: line["outcome"] for name, line in results(tmp_path / "out/tests.jsonl").items()}
    assert found == {"test_one": "passed", "test_two": "failed", "test_dies": "died", "test_breaks": "failed"} | {
        "test_after": "passed",
        "test_skipped": "skipped",
    }
    assert ran.read_text().count("one ") == ran.read_text().count("after") == 1
    said = report(tmp_path)
    assert "6 of 6 are done: 2 passed, 2 failed, 1 died, 1 skipped" in said and "no such device" in said and "exit code 139" in said


BENCH = """
import json, pathlib, sys, time
words = sys.argv[1:]
if "--list" in words:
    print("/a/file.py:3: UserWarning: this\\n  warnings.warn(this)\\nfast        a row\\nslow        another\\ncrashes     a third")
    sys.exit()
out, asked = pathlib.Path(words[words.index("--out") + 1]), words[words.index("--rows") + 1 :]
rows = {}
for name in asked:
    with open(sys.argv[0] + ".asked", "a") as file: print(name, file=file)
    if name == "crashes": sys.exit(134)
    dead = None
    try:
        if name == "slow" and not pathlib.Path(sys.argv[0] + ".quick").exists(): time.sleep(60)
    except KeyboardInterrupt:
        dead = "stopped"
    ratio = {"name": "us / them", "median": 1.5, "low": 1.4, "high": 1.6, "goal": ">= 2", "met": False}
    rows[name] = {"ratios": [ratio], "absent": {"them": "not here"}, "died": dead}
    out.write_text(json.dumps({"machine": {}, "rows": rows}))
    if dead: sys.exit(130)
sys.exit(1)
"""


@pytest.fixture
def tried(tmp_path):
    """`call()`, with six seconds for a table of which a row takes a minute unless `quick` is there; `asked()`, its rows so far."""
    (script := tmp_path / "bench.py").write_text(BENCH)
    chosen = replace(SMALL, bench=(str(script),))
    return SimpleNamespace(
        call=lambda: checked(tmp_path, Bench(), minutes=0.1, chosen=chosen).go(["bench"]),
        asked=lambda: Path(f"{script}.asked").read_text().split(),
        quick=Path(f"{script}.quick"),
    )


def test_the_table_goes_on_with_the_rows_that_are_left(tried, tmp_path):
    assert tried.call() is None
    assert "| fast | us / them | 1.5 | 1.4 to 1.6 | >= 2 | no |" in report(tmp_path) and "| slow |" not in report(tmp_path)
    tried.quick.touch()
    assert tried.call() is False
    assert tried.asked() == ["fast", "slow", "crashes", "slow"]  # what comes after a row that was stopped is measured before it
    assert "2 rows, 2 goals missed; died: crashes" in report(tmp_path)
    assert "exit code 134" in report(tmp_path)


def test_a_row_that_takes_longer_than_a_part_is_not_tried_for_ever(tried, tmp_path):
    assert tried.call() is None and tried.call() is None
    assert "exit code 134" in report(tmp_path) and "takes longer than the 0.1 minutes of a part" in report(tmp_path)
    assert tried.call() is False
    assert tried.asked() == ["fast", "slow", "crashes", "slow"] and "1 rows, 1 goals missed; died: slow, crashes" in report(tmp_path)


def test_a_row_that_ctrl_c_ended_is_tried_again(tried, tmp_path, monkeypatch):
    """It had the whole part before it, too, and did not take it."""
    row = {"ratios": [], "absent": {}, "died": "stopped"}

    def interrupted(check, *line, **words):
        check.work.mkdir(parents=True, exist_ok=True)
        (check.work / "bench.json").write_text(json.dumps({"rows": {"fast": row}}))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Check, "code", interrupted)
        patched.setattr(Check, "ran", lambda check, *line: tmp_path / "list")
        (tmp_path / "list").write_text("$ list\nfast a row\nslow another\ncrashes a third\n")
        tried.call()
    assert "takes longer" not in report(tmp_path)
    tried.quick.touch()
    assert tried.call() is False and tried.asked() == ["slow", "crashes", "fast"]


@pytest.mark.parametrize("chosen", [FULL, SMALL, PICTURES], ids=lambda chosen: chosen.name)
def test_the_words_of_a_size_are_those_of_the_commands(tmp_path, chosen):
    (tmp_path / "resnet56-0.th").touch()
    words = filled((*chosen.training, *chosen.distance), 5.0, tmp_path)
    assert len({word.split("=")[0] for word in words}) == len(words)
    config = composed(*words, "trainer.accelerator=cpu")
    assert len(config["metric"]) == 1 and (str(tmp_path) in str(config)) == chosen.files


def test_the_size_follows_from_device_minutes_and_data(tmp_path):
    assert [size(device, minutes, tmp_path) for device, minutes in (("cuda", 8), ("cpu", 8), ("cuda", 1), ("cpu", 1))] == [
        FULL,
        PICTURES,
        SMALL,
        SMALL,
    ]
    assert size("cpu", 8, None) == SMALL
    with pytest.raises(UserError, match="--data"):
        size("cuda", 8, None)
    with pytest.raises(UserError, match="resnet56"):
        filled(FULL.distance, 8, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "nothing"], "invalid choice: 'nothing'"),
        (["--minutes", "0"], "none that a part takes"),
        (["--minutes", "nan"], "none that a part takes"),
        (["--data", "/nowhere"], "--data /nowhere is no folder"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_what_is_none_is_refused(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        arguments(words)
    assert said in capsys.readouterr().err


def test_a_training_of_minutes_is_resumed_for_those_that_are_left():
    lines = [{"since": 0.0, "time": 30.0}, {"since": 0.0, "time": 90.0}, {"since": 200.0, "time": 230.0}, {"cell": 1, "time": 999.0}]
    assert minutes_left(["batch_size=4", "minutes=5.50"], lines) == ["minutes=3.50"]
    assert minutes_left(["minutes=1.00"], lines) == ["minutes=0.05"] and minutes_left(["steps=3"], lines) == []


def test_distances_that_do_not_agree_are_a_failure(tmp_path):
    said = {"training": 3.0, "evaluate": 3.0, "features": 3.000001}
    stages = {name: {"seconds": 1.0, "value": said.get(name)} for name in ("reference", "training", "evaluate", "sampling", "features")}
    for name, value, well in ((None, 0, True), ("evaluate", 3.0001, False), ("features", 3.00001, False)):
        check = checked(tmp_path, Distances())
        check.state.part("distance")["stages"] = stages | ({name: {"seconds": 1.0, "value": value}} if name else {})
        check.state.part("distance")["status"] = "left"
        assert check.go(["distance"]) is well
        assert ("do not agree" in report(tmp_path)) != well


def test_the_curve_and_the_utilisation_are_those_of_the_numbers(tmp_path):
    """By hand: 200 images a second of 3 GFLOP each are 0.6 TFLOP/s, a quarter of 2.4."""
    check = checked(tmp_path, Training(), minutes=5)
    run = check.work / "runs" / "gpu-check"
    run.mkdir(parents=True)
    lines = [{"step": i, "since": 0.0, "time": 60.0 * i, "images_per_second": speed} for i, speed in enumerate([1, 2, 100, 200, 300])]
    lines += [
        {"step": i, "since": 60.0 * (i > 2), "time": 60.0 * i, "metric": "fd@5k", "fd@5k": 9.0 / i, "fd@5k/error": 0.1} for i in (1, 2, 4)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn": ')
    assert "| 4 | 5.0 | fd@5k | 2.25 |" in "\n".join(check.parts[0].lines(check))  # two minutes, and three of another process
    counted = {"seconds": 1.0, "parameters": 1e6, "step": 3e9, "precision": "32-true"}
    stages = {"rates": {"seconds": 1.0, "rates": {"float32": 2.4}}, "training": {"seconds": 1.0}, "FLOPs": counted}
    check.state.part("train")["stages"] = stages
    assert check.go(["train"]) is True
    said = report(tmp_path)
    assert "| utilisation (MFU) | 25.0 % |" in said and "| 2 | 2.0 | fd@5k | 4.5 |" in said and "![curve](curve.png)" in said
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")


def call(folder, *words, timeout=600):
    line = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--out", str(folder / "out"), *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_machine_without_the_device_is_refused_in_one_sentence(tmp_path):
    done = call(tmp_path, "--device", "cuda", "--minutes", "1", timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "torch sees no GPU here: say --device cpu" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_four_parts_on_a_cpu(tmp_path):
    """Each stops at a minute and goes on, until nothing is left."""
    for _ in range(12):
        done = call(tmp_path, "--minutes", "1")
        text = report(tmp_path)
        if done.returncode != 75:
            break
    assert done.returncode == 0, done.stdout + done.stderr + text
    assert text.count("| done |") == 4 and "utilisation (MFU)" in text and "by diffusion.evaluate" in text
    files = list((tmp_path / "out").rglob("*"))
    assert len(files) <= keeping.FILES and max(file.stat().st_size for file in files) < 15e6
    assert {"report.md", "state.json", "tests.jsonl", "curve.png", "samples.png", "kept-1.tar.gz"} <= {file.name for file in files}
    again = call(tmp_path, "--minutes", "1", timeout=60)
    assert again.returncode == 0 and again.stdout.count("done before") == 4
