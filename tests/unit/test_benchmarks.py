"""`make benchmark`: sides take turns, ratios are of one round, the file has what there is however it ends, and both sides do equal work."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
import torch

import benchmarks.__main__ as program
from benchmarks import networks, rows, sizes
from benchmarks.harness import Absent, Ratio, Result, Row, Side, measured
from benchmarks.process import ABSENT, Giver, Started, lines
from benchmarks.rows import sampling
from benchmarks.rows.training import loop, train
from benchmarks.turns import Turns
from benchmarks.work import Bench

ROOT = Path(__file__).parents[2]
TWICE = (Ratio("peer / ours", "peer", "ours", {"cpu": ">= 2"}),)


def side(name, numbers, log=None, needed=False, opens=None):
    """A side that gives these numbers in turn; an exception among them is raised."""

    @contextmanager
    def opened(self):
        if opens:
            raise opens
        left = iter(numbers)

        def work():
            if log is not None:
                log.append(name)
            number = next(left)
            if isinstance(number, BaseException):
                raise number
            return number

        self.facts["work"] = 2.0 if name == "peer" else 1.0
        try:
            yield work
        finally:
            if log is not None:
                log.append(f"{name} closed")

    return Side(name, opened, needed)


def row(*sides, name="row", ratios=TWICE):
    return Row(name, "what", "s", sides, tuple(ratios))


def result_of(row, rounds=3):
    measured(row, rounds, "cpu", result := Result(row.name, row.what, row.unit))
    return result


def test_sides_take_turns_in_alternating_order():
    log = []
    result_of(row(side("ours", [1, 1, 1], log), side("peer", [2, 2, 2], log)))
    assert log == ["ours", "peer", "peer", "ours", "ours", "peer", "peer closed", "ours closed"]


def test_a_ratio_is_of_the_two_numbers_of_one_round():
    """The machine is ten times as slow in the third round; the ratio of the medians would be 4 / 1.5."""
    result = result_of(row(side("ours", [1.0, 1.5, 10.0]), side("peer", [2.0, 4.5, 40.0])))
    (ratio,) = result.ratios
    assert (ratio["median"], ratio["low"], ratio["high"], ratio["rounds"]) == (3, 2, 4, [2, 3, 4])
    assert ratio["met"] is True and result.rounds == {"ours": [1.0, 1.5, 10.0], "peer": [2.0, 4.5, 40.0]}


def test_ratios_by_work_as_a_remainder_of_facts_and_of_one_side():
    ratios = [
        Ratio("per", "peer", "ours", {"cpu": ">= 2"}, per="work"),
        Ratio("less", "ours", "peer", {"cpu": "< 0.02"}, less=1.0),
        Ratio("fact", "peer", "ours", fact="work"),
        Ratio("alone", "ours", None, {"cpu": "< 1"}),
        Ratio("of nobody", "nobody", "ours"),
    ]
    made = {r["name"]: r for r in result_of(row(side("ours", [4.0]), side("peer", [12.0]), ratios=ratios), 1).ratios}
    assert {name: (r["median"], r["met"]) for name, r in made.items()} == {
        "per": (1.5, False),
        "less": (pytest.approx(-2 / 3), True),
        "fact": (2.0, None),
        "alone": (4.0, False),
    }


def test_a_peer_that_is_not_there_or_fails_leaves_the_row_to_the_others():
    gone, broken = side("gone", [], opens=Absent("gone is not installed")), side("broken", [1.0, ValueError("bad luck")])
    result = result_of(row(side("ours", [1.0, 1.0, 1.0], needed=True), gone, broken, side("peer", [2.0, 2.0, 2.0])))
    assert result.died is None
    assert result.absent == {"gone": "gone is not installed", "broken": "ValueError: bad luck"}
    assert result.rounds.keys() == {"ours", "peer"} and len(result.ratios) == 1


def test_all_are_open_before_the_first_is_warm_and_warm_before_the_first_round():
    log = []
    ours, peer, cold = side("ours", [1], log), side("peer", [2], log), side("cold", [3], log)
    ours.warm, peer.warm = partial(log.append, "ours warm"), partial(log.append, "peer warm")

    def never():
        raise RuntimeError("out of memory")

    cold.warm = never
    result = result_of(row(ours, cold, peer), 1)
    assert log[:4] == ["ours warm", "peer warm", "ours", "peer"] and result.absent == {"cold": "RuntimeError: out of memory"}


def test_a_row_without_us_dies_and_says_why():
    log = []
    result = result_of(row(side("ours", [1.0, RuntimeError("no memory")], needed=True), side("peer", [2.0] * 3, log)))
    assert result.died == "RuntimeError: no memory"
    assert result.rounds["ours"] == [1.0] and log[-1] == "peer closed"


def test_the_file_has_each_row_as_it_ends_and_what_there_is_at_ctrl_c(tmp_path, capsys):
    """The second dies, the third is stopped in its second round, the fourth is never begun."""
    out, seen = tmp_path / "results.json", []

    def stopped():
        yield 1.0
        raise KeyboardInterrupt

    @contextmanager
    def stopping(self):
        seen.append(list(json.loads(out.read_text())["rows"]))
        yield partial(next, stopped())

    table = [
        row(side("ours", [1.0] * 2), side("peer", [2.0] * 2), name="good"),
        row(side("ours", [OSError("gone")], needed=True), name="bad"),
        Row("last", "what", "s", (side("peer", [3.0] * 2), Side("ours", stopping)), (Ratio("r", "peer", "ours"),)),
        row(side("ours", [1.0]), name="never"),
    ]
    bench = Bench("cpu", sizes.SMOKE, tmp_path)
    assert program.run(bench, table, 2, out) == 130
    content = json.loads(out.read_text())
    assert seen == [["good", "bad"]] and list(content["rows"]) == ["good", "bad", "last"]
    assert content["rows"]["bad"]["died"] == "OSError: gone" and content["rows"]["last"]["died"] == "stopped"
    assert content["rows"]["last"]["rounds"] == {"peer": [3.0], "ours": [1.0]}
    assert content["machine"]["torch"] == torch.__version__ and content["sizes"]["channels"] == sizes.SMOKE.channels
    said = capsys.readouterr().out
    assert "| good | peer / ours | 2 | 2 to 2 | >= 2 | yes |" in said and "| bad | | | | | OSError: gone |" in said
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_row_that_is_not_there_is_refused_with_those_that_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["--device", "cpu", "--rows", "trainig", f"--out={tmp_path}/x.json"])
    assert ended.value.code == 2 and "--rows trainig: the rows are training-16-fp32, training-16-best" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said(capsys):
    with pytest.raises(SystemExit):
        program.main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


def test_the_rows_of_each_device_have_names_of_their_own_and_goals_of_sides_that_are_there(tmp_path):
    for device, size in (("cpu", sizes.CPU), ("cuda", sizes.CUDA)):
        table = [r for room in rows.ROOMS for r in room.rows(Bench(device, size, tmp_path))]
        assert len({r.name for r in table}) == len(table)
        for made in table:
            names = {s.name for s in made.sides}
            ratios = [ratio for ratio in made.ratios if ratio.goals.get(device)]
            assert ratios and all({ratio.of, ratio.by} <= names | {None} for ratio in ratios), made.name
            assert all(ratio.met(1.0, device) in (True, False) for ratio in ratios)


def test_turns_are_warm_then_wait_and_time_their_own_steps(tmp_path):
    """A loop of steps of 10 ms, which begins when it may: two to warm up and three to a round; nothing runs while it is not its turn."""
    turns, steps, giver = Turns(tmp_path, 2, 3, memory="known"), [], Giver(tmp_path)

    def run():
        while len(steps) < 8:
            turns.step()
            steps.append(time.perf_counter())
            time.sleep(0.01)

    def until(name, count):
        while len(found := lines(tmp_path / name, count)) < count:
            time.sleep(0.002)
        return found

    thread = Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.05)
    assert not steps
    giver.give(-1)
    (said,) = until("ready-0.jsonl", 1)
    time.sleep(0.05)
    assert len(steps) == 2 and said["memory"] == "known" and said["threads"] == torch.get_num_threads()
    giver.give(0)
    (first,) = until("rounds-0.jsonl", 1)
    time.sleep(0.05)
    assert len(steps) == 5 and first["steps"] == 3 and first["round"] == 0
    assert first["seconds"] >= 0.03 and first["resident, GiB"] > 0
    giver.give(1)
    thread.join(10)
    assert len(steps) == 8
    giver.end()


def test_a_process_that_ends_says_its_last_words_and_one_that_lacks_a_package_is_absent(tmp_path):
    for code, kind in ((3, RuntimeError), (ABSENT, Absent)):
        started = Started(["-c", f"import sys; print('no such thing'); sys.exit({code})"], tmp_path / str(code))
        with pytest.raises(kind, match="no such thing"):
            started.until(lambda: False, 60)
        started.end()


def test_a_process_is_ended_with_its_children_and_one_that_is_late_is_named(tmp_path):
    child = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    started = Started(["-c", child], tmp_path)
    pid = int(started.until(lambda: started.said.read_text().strip(), 60))
    with pytest.raises(RuntimeError, match="nothing after 0 s"):
        started.until(lambda: False, 0)
    started.end()
    state = Path(f"/proc/{pid}/stat")
    for _ in range(100):  # it may be a zombie until it is reaped by whose child it became
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the child lives")


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_process_whose_benchmark_is_gone_waits_for_no_turn(tmp_path, when):
    giver = Giver(tmp_path)
    words = ["-c", f"from benchmarks.turns import Turns; Turns({str(tmp_path)!r}, 0, 1).step(); print('began'); exit(3)"]
    giver.give(-2)  # a turn that is not its
    if when == "before":
        giver.end()
    started = Started(words, tmp_path)
    if when != "before":
        time.sleep(4)
        assert started.process.poll() is None
        giver.end()
    assert started.process.wait(120) == 1 and "began" not in started.said.read_text()


def test_a_process_ends_with_the_one_that_started_it_however_that_ends(tmp_path):
    code = f"""
import time
from pathlib import Path
from benchmarks.process import Started
print(Started(["-c", "import time; time.sleep(60)"], Path({str(tmp_path)!r})).process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    state = Path(f"/proc/{pid}/stat")
    for _ in range(250):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    raise AssertionError("the child lives")


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "run", lambda *given: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for out, said in ((tmp_path, "is a folder: say a file"), (tmp_path / "file/x.json", "cannot be written to")):
        with pytest.raises(SystemExit) as ended:
            program.main(["--device", "cpu", "--smoke", "--rows", "startup", f"--out={out}"])
        assert ended.value.code == 1 and said in capsys.readouterr().err


def test_some_rows_and_small_ones_do_not_take_the_place_of_the_whole_table(monkeypatch):
    written = []
    monkeypatch.setattr(program, "run", lambda bench, chosen, rounds, out: written.append(out.name) or 0)
    for words in ([], ["--smoke"], ["--rows", "startup"]):
        program.main(["--device", "cpu", *words])
    assert written == ["results.json", "part.json", "part.json"]


@pytest.mark.parametrize("num_classes", [0, 10])
def test_the_networks_are_of_one_shape(num_classes):
    """As many parameters, and as many operations for an image; with classes too, whose null class is one more."""
    pytest.importorskip("diffusers")
    cond = [[torch.zeros(1, dtype=torch.long)], [torch.zeros(1, dtype=torch.long)]] if num_classes else [[], []]
    made = [networks.ours(32, 32, num_classes=num_classes), networks.diffusers(32, 32, num_classes=num_classes)]
    ours, theirs = (networks.facts(n, 32, "cpu", *c) for n, c in zip(made, cond, strict=True))
    assert ours == theirs and ours["GFLOP"] > 1


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_all_sides_of_sampling_call_a_network_on_as_many_images(number, guided, tmp_path, monkeypatch):
    """Counted in the network: no side makes fewer steps, or halves of a batch, than the others."""
    pytest.importorskip("diffusers")
    bench = Bench("cpu", sizes.SMOKE, tmp_path)
    method, counted = replace(sampling.methods(bench)[number], guided=guided), []

    def counting(make, *args, **kwargs):
        network = make(*args, **kwargs)
        network.register_forward_pre_hook(lambda module, given: counted.append(len(given[0])))
        return network

    for name in ("ours", "diffusers"):
        monkeypatch.setattr(networks, name, partial(counting, getattr(networks, name)))
    makers = [sampling.ours, sampling.diffusers, *([sampling.k_diffusion] if method.name == "dpmpp-2m" else [])]
    for make in makers:
        made = make(bench, method, "32-true" if make is sampling.ours else "fp32")()
        assert getattr(made, "images", made).shape == (method.batch, 16, 16, 3)
        assert sum(counted) == method.steps * method.batch * (1 + guided), make.__name__
        counted.clear()


def test_a_row_of_sampling_runs_whole(tmp_path):
    bench = Bench("cpu", sizes.SMOKE, tmp_path)
    known = rows.every(bench)
    for name in ("sampling-ddim", "arithmetic-ddim"):
        result = result_of(known[name], 1)
        assert result.died is None and not result.absent and len(result.ratios) == 3
        assert all(len(numbers) == 1 and numbers[0] > 0 for numbers in result.rounds.values())


def test_what_train_py_is_told_composes_and_is_the_peers_work(tmp_path):
    """The commands of both devices and all batches, with the words that are only typed here."""
    from composing import composed

    for device, size in (("cpu", sizes.CPU), ("cuda", sizes.CUDA)):
        bench = Bench(device, replace(size, images=4), tmp_path / device)
        for batch in size.batches:
            words = [word.format(turns=tmp_path) for word in train(bench, batch, ["precision=32-true"])[1:]]
            config = composed(*(word for word in words if not word.startswith("name=")))
            assert config["callbacks"]["turns"]["_target_"] == "benchmarks.turning.Turning"
            told = dict(word.removeprefix("--").split("=", 1) for word in loop(bench, batch, "accelerated")[3:])
            assert (int(told["batch"]), int(told["channels"])) == (config["batch_size"], config["network"]["channels"])
            assert told["images"] == config["dataset"]["root"] and config["dataset"]["flip"]
            assert config["trainer"]["accelerator"] == {"cpu": "cpu", "cuda": "gpu"}[device]
            assert config["network"]["dropout"] == 0.1  # as the loops have it


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(rows.every(Bench("cpu", sizes.SMOKE, Path("nowhere")))))
def test_every_row_runs_in_small(name, tmp_path):
    """With all peers that are installed, as a user types it."""
    out = tmp_path / "results.json"
    line = [sys.executable, "-m", "benchmarks", "--device=cpu", "--smoke", "--rounds=1", f"--out={out}", "--rows", name]
    made = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=850, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    result = json.loads(out.read_text())["rows"][name]
    assert result["died"] is None and not result["absent"] and result["ratios"]
    assert all(number > 0 for numbers in result["rounds"].values() for number in numbers)


@pytest.mark.slow
def test_a_benchmark_that_is_told_to_end_leaves_no_process_and_no_folder(tmp_path):
    """SIGTERM while train.py waits for its turn and a peer is being started."""
    out, temporary = tmp_path / "results.json", tmp_path / "tmp"
    temporary.mkdir()
    line = [sys.executable, "-m", "benchmarks", "--device=cpu", "--smoke", f"--out={out}", "--rows", "training-16-fp32"]
    process = subprocess.Popen(line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)})
    while not (ready := list(temporary.glob("benchmark-*/**/ready-0.jsonl"))) and process.poll() is None:
        time.sleep(0.1)
    (said,) = lines(ready[0], 1)
    process.terminate()
    assert process.wait(60) == 130
    assert json.loads(out.read_text())["rows"]["training-16-fp32"]["died"] == "stopped"
    assert not Path("/proc", str(said["pid"])).exists() and not list(temporary.glob("benchmark-*"))
