"""The parts of a sweep: whose GPU is whose, what a configuration's hash is of, a job that is queued again, the rows of the table."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from composing import composition, typed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from diffusion.config import plain, training_hash
from diffusion.metrics import PSNR, SlicedWasserstein
from diffusion.mistyped import plainly
from diffusion.support.errors import UserError
from diffusion.support.host import gpus
from diffusion.sweeps.end import Sweep, stop
from diffusion.sweeps.jobs import alone_with, end_with_the_sweep, left_in_peace
from diffusion.sweeps.ledger import HERE, HIDDEN, Ledger, as_csv, as_markdown, sweep_name
from diffusion.sweeps.share import share_of
from diffusion.sweeps.trials import Trials

ROOT = Path(__file__).parents[2]
TAKE = """
import os, sys
from pathlib import Path
from diffusion.sweeps.share import take_share
take_share(int(sys.argv[1]), Path(sys.argv[2]))
take_share(int(sys.argv[1]), Path(sys.argv[2]))  # a second job of the same process
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    """Ledger.begin tells the processes that this one starts of the sweep; the next test is of another."""
    monkeypatch.setenv(HERE, "")


@pytest.mark.parametrize(
    "at_once, among, shares",
    [
        (2, "0,1", ["0", "1"]),
        (2, "4,5,6,7", ["4,5", "6,7"]),
        (2, "0,1,2", ["0", "1"]),
        (3, "0,1", ["0", "1", "0"]),
        (1, "0,1", ["0,1"]),
        (2, "", ["", ""]),
    ],
)
def test_a_share_of_the_gpus(at_once, among, shares, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", among)
    assert [",".join(share_of(place, at_once, gpus())) for place in range(at_once)] == shares


def test_processes_take_gpus_of_their_own(tmp_path):
    """Two at a time, of three; when one has been killed its GPU is free for the next."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,GPU-a", "PYTHONPATH": str(ROOT)}

    def taken() -> tuple[subprocess.Popen, str]:
        line = [sys.executable, "-c", TAKE, "2", str(tmp_path)]
        process = subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    first, second = taken(), taken()
    assert {first[1], second[1]} == {"3", "GPU-a"}
    first[0].kill()
    first[0].wait()
    third = taken()
    assert third[1] == first[1]
    for process, _ in (second, third):
        process.communicate()


@cache
def hashed(*words: str) -> str:
    return training_hash(plain(composition(*words), typed(*words)))


def test_the_hash_of_a_configuration():
    """What a training is changes it; its name, places and loggers do not, nor does the order of words."""
    same = hashed("seed=1", "metric=[fd_digits,kid]")
    for others in (["name=other"], ["paths.cache=elsewhere", "paths.runs=there"], ["dataset.cache=here"]):
        assert hashed("metric=[fd_digits,kid]", *others, "seed=1") == same
    for others in (
        ["steps=7"],
        ["schedule=linear"],
        ["metric=[kid,fd_digits]"],
        ["guidance=[clip,cfg]"],
        ["trainer.devices=2"],
        ["dataset.root=here"],
    ):
        assert hashed("seed=1", "metric=[fd_digits,kid]", *others) != same


def test_a_job_is_left_in_peace_before_it_is_queued_again():
    """The handler of SIGUSR2 that was there is called when the training has been left by SIGUSR1, and not before."""
    said = []

    def leave(signum, frame):
        said.append("saved")
        raise SystemExit(138)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        signal.signal(signal.SIGUSR2, lambda signum, frame: said.append("queued again"))
        with pytest.raises(SystemExit), left_in_peace():
            signal.signal(signal.SIGUSR1, leave)
            os.kill(os.getpid(), signal.SIGUSR2)
            signal.pause()
        assert said == ["saved", "queued again"]
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # no training listens yet
        with left_in_peace():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert said[2:] == ["queued again"]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_the_rows(tmp_path, monkeypatch):
    """The last of each job, in order; the words that differ; numbers with their errors; a | in a word does not end a cell."""
    assert Ledger.current() is None
    Ledger(tmp_path, "x").begin("python train.py -m", swept=["seed"])
    ledger = Ledger.current()
    assert ledger.table == tmp_path / "x.md"
    told = {"job": 1, "words": {"seed": "2", "same": "1"}, "folder": "runs/x-1", "why": ""}
    ledger.record(told | {"state": "running"})
    assert ledger.table.read_text().splitlines()[4:] == [
        "| job | seed | step | seconds |  |",
        "| --- | --- | --- | --- | --- |",
        "| 1 | 2 |  |  | running, in runs/x-1 |",
    ]
    with ledger.file.open("a") as file:
        file.write('{"job": 1, "words": {"seed": "2"}')  # half a line, of a process that was killed
    assert [row["state"] for row in ledger.rows()] == ["running"]
    ledger.record({"job": 0, "words": {"seed": "a|b", "same": "1"}, "folder": "", "why": "no such seed.", "state": "failed"})
    assert [row["job"] for row in ledger.running()] == [1]
    ledger.record(told | {"state": "done", "step": 4, "seconds": 1.5, "numbers": {"fd@1k": 3.25, "fd@1k/error": 0.5}})
    assert ledger.running() == [] and [row["state"] for row in ledger.rows()] == ["failed", "done"]
    lines = ledger.table.read_text().splitlines()
    assert lines[4] == "| job | seed | step | seconds | fd@1k |  |"
    assert lines[6:] == [r"| 0 | a\|b |  |  |  | failed: no such seed. |", "| 1 | 2 | 4 | 1.5 | 3.25 ± 0.5 | done, in runs/x-1 |"]
    assert ledger.table.with_suffix(".csv").read_text() == as_csv(ledger.rows())
    assert as_csv(ledger.rows()).splitlines()[0] == "job,seed,state,why,folder,step,seconds,fd@1k,fd@1k/error"
    assert as_markdown([], "c").startswith("```\nc\n```")


@pytest.fixture
def holder(tmp_path):
    """A process that has a sweep's lock, and then none."""
    (place := Ledger(tmp_path, "x").holder).parent.mkdir()
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_job_sees_that_its_sweep_is_over(tmp_path, holder):
    """Stopped, killed, or followed by another of its name, to whose rows it adds none; that jobs outlive is said of a cluster's."""
    ledger, row = Ledger(tmp_path, "x"), {"job": 0, "words": {}, "folder": "", "why": "", "state": "running"}
    ledger.begin("a")
    early = Ledger.current()
    assert early.at_home() and not early.over()
    early.record(row)
    early.stop()
    assert early.over() and early.rows() == [early.rows()[0]] == early.running()
    ledger.begin("b")
    later = Ledger.current()
    early.record(row)
    assert early.over() and not later.over() and later.rows() == []
    holder.kill()
    holder.wait()
    assert later.over()
    ledger.begin("c", outlived=True)
    assert not Ledger.current().over() and later.over() is False and not Ledger(tmp_path, "y", "1").over()


def test_a_job_whose_sweep_is_over_is_not_begun(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, "x")
    ledger.begin("a")
    end_with_the_sweep()  # the sweep's own process
    monkeypatch.setattr(os, "getpid", lambda: -1)
    ledger.stop()
    with pytest.raises(SystemExit) as left:
        end_with_the_sweep()
    assert left.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("outlived, state", [(True, "running"), (False, "stopped")])
def test_what_a_stopped_sweep_says_of_a_job(outlived, state, tmp_path, monkeypatch, capsys):
    """One of a cluster goes on, and is neither told to end nor said to have ended."""
    before = signal.getsignal(signal.SIGTERM)
    ledger = Ledger(tmp_path, "x")
    ledger.begin("a", outlived)
    ledger.record({"job": 0, "words": {}, "folder": "", "why": "", "state": "running"})
    monkeypatch.setattr("diffusion.sweeps.end.draw_runs", lambda runs: None)
    try:
        with pytest.raises(SystemExit):
            stop(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ledger.over() is not outlived
    Sweep(outlived).end(os.getpid())
    assert [row["state"] for row in ledger.rows()] == [state] and state in capsys.readouterr().out


def test_the_name_of_a_sweep():
    """Of one over names, all of them: its table and its lock are the same when it is typed again."""
    for word, name in {"name=w7,w8": "w7,w8", "name=choice(a,b)": "choice(a,b)", "name=x": "made", "seed=1,2": "made"}.items():
        config = OmegaConf.create({"name": "made", "hydra": {"overrides": {"task": [word, "steps=3"]}}})
        assert sweep_name(config) == name
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        sweep_name(OmegaConf.create({"name": "made", "hydra": {"overrides": {"task": ["name=a/b,c"]}}}))


def test_what_may_be_searched():
    optuna = pytest.importorskip("optuna")
    from diffusion.sweeps.trials import distribution

    kinds = optuna.distributions
    for word, kind in {
        "a=interval(1,8)": kinds.FloatDistribution(1, 8),
        "a=tag(log,interval(1e-5,1e-3))": kinds.FloatDistribution(1e-5, 1e-3, log=True),
        "a=int(interval(1,8))": kinds.IntDistribution(1, 8),
        "a=x,y": kinds.CategoricalDistribution(["x", "y"]),
        "a=range(1,6,2)": kinds.CategoricalDistribution(["1", "3", "5"]),
    }.items():
        assert distribution(OverridesParser.create().parse_overrides([word])[0]) == kind


@pytest.mark.parametrize("word, hydra_s", [("joblib", "joblib"), ("slurm", "submitit_slurm"), ("submitit_local", "submitit_local")])
def test_a_launcher_is_hydra_s(word, hydra_s):
    """Each setting of the word goes to Hydra's launcher by its own name; without the package a sentence says how it is installed."""
    pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if word == 'joblib' else 'submitit'}_launcher")
    file = yaml.safe_load((ROOT / f"conf/launcher/{word}.yaml").read_text())
    assert file["defaults"] == [{"override /hydra/launcher": hydra_s}]
    for key in file["launcher"].keys() - {"program"}:
        assert file["hydra"]["launcher"][key] == f"${{launcher.{key}}}"
    assert composition(f"launcher={word}").launcher.keys() == file["launcher"].keys()
    assert file["hydra"].get("callbacks", {}).get("sweep", {}).get("outlived", False) == (word == "slurm")
    missing = MissingConfigException(missing_cfg_file=f"hydra/launcher/{hydra_s}", message="")
    assert plainly(missing) == f"launcher/{hydra_s} is not installed: pip install -e .[sweep]."


@pytest.mark.parametrize("metric, best", [(SlicedWasserstein(4, groups=0), min), (PSNR(4), max)])
def test_a_search_looks_for_the_better_value(metric, best, tmp_path, monkeypatch):
    """By the metric's own word for it, and it goes on: the second call makes what the first has left."""
    values = []

    def batch(self, study, space, fixed, size):
        trial = study.ask(space)
        trial.set_user_attr("job", trial.number)
        values.append(trial.params["optimizer.lr"])
        study.tell(trial, values[-1])

    said = ["steps=7", "metric=sliced_wasserstein"]

    def searched(trials, *words, space="interval(0.1,0.9)"):
        search = Trials(trials, 1, 0)
        search.parser, search.runs, search.name, search.task = OverridesParser.create(), tmp_path, "search", [*said, *words]
        return search.sweep([f"optimizer.lr={space}", *words])

    monkeypatch.setattr(
        "diffusion.sweeps.trials.configuration", lambda words, _: ({"metric": {}}, {"words.yaml": f"hash: {hashed(*words)}"})
    )
    monkeypatch.setattr("diffusion.sweeps.trials.first_metric", lambda stages: metric)
    monkeypatch.setattr(Trials, "batch", batch)
    (tmp_path / HIDDEN).mkdir()
    for trials in (2, 5):
        found = searched(trials, f"name={trials}", "paths.runs=elsewhere")
    assert len(values) == 5 and found["best_evaluated_result"] == best(values)
    for others in (["steps=4"], ["metric.n=16"], ["dataset.flip=true"]):
        with pytest.raises(UserError, match="name=search is a search of other words, by another metric"):
            searched(9, *others)
    with pytest.raises(UserError, match="name=search is a search of other words"):
        searched(9, space="interval(0.1,0.8)")
    assert len(values) == 5


def test_torchrun_s_ranks_wait_for_no_other_process(tmp_path, monkeypatch):
    """The others would have begun; by itself, a process waits."""
    hydra = SimpleNamespace(get=lambda: SimpleNamespace(job=SimpleNamespace(num=4)))
    monkeypatch.setattr("diffusion.sweeps.jobs.HydraConfig", hydra)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with alone_with("a", tmp_path), alone_with("b", tmp_path):
        with pytest.raises(UserError, match="another process trains what job 4 would, and torchrun's ranks do not wait"):
            alone_with("a", tmp_path).__enter__()
        monkeypatch.setenv("RANK", "1")
        with alone_with("a", tmp_path):
            pass
