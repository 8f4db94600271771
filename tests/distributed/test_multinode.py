"""Several machines: torchrun's and SLURM's, as processes of this one that each think that they are on one of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest
from composing import ROOT, TINY, composed

from diffusion.checkpoint import read_checkpoint
from diffusion.support.errors import UserError
from diffusion.training.machine import LAUNCHERS, machines, processes, trainer_settings

WORDS = [*TINY, "network.channels=4", "steps=4", "eval_every=4", "logger=none", "name=run", "trainer=multinode", "trainer.accelerator=cpu"]
TORCHRUN = [
    *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--node_rank={rank}"),
    *("--master_addr=127.0.0.1", "--master_port={port}"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def slurm(port: int, rank: int) -> dict[str, str]:
    """What srun sets on machine `rank` of two, with a process each."""
    said = {
        "NTASKS": 2,
        "NTASKS_PER_NODE": 1,
        "NNODES": 2,
        "STEP_NUM_NODES": 2,
        "PROCID": rank,
        "NODEID": rank,
        "LOCALID": 0,
        "JOB_ID": 4711,
        "JOB_NAME": "train",
    }
    return {f"SLURM_{key}": str(value) for key, value in said.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def two_machines(folders, *words: str, launcher: Sequence[str] = (), environment=lambda port, rank: {}) -> list[tuple[int, str]]:
    """(exit code, what it said) of train.py on each, whose runs are in these folders."""
    port, started = free_port(), []
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "HYDRA"))}
    for rank, folder in enumerate(folders):
        before = [word.format(port=port, rank=rank) for word in launcher]
        line = [sys.executable, *before, "train.py", *WORDS, f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", *words]
        own = plain | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment(port, rank)
        started.append(subprocess.Popen(line, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        said = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def numbers(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


LAUNCHED = {"torchrun": dict(launcher=TORCHRUN), "slurm": dict(environment=slurm)}


@pytest.mark.parametrize("launched", ["torchrun", pytest.param("slurm", marks=pytest.mark.slow)])
def test_two_machines_train_one_run(launched, tmp_path):
    """One of them writes: the configuration, the numbers once each, the samples, the checkpoint."""
    outcomes = two_machines([tmp_path, tmp_path], **LAUNCHED[launched])
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    run = tmp_path / "run"
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4
    lines = numbers(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4] and (run / "config.yaml").exists()
    assert [("sample from it" in said) for _, said in outcomes] == [True, False]  # the first speaks for all
    assert not list(run.glob(".seen*"))


def test_machines_that_share_no_folder(tmp_path):
    """Refused by both, in a sentence, and nothing is left of it."""
    folders = [tmp_path / "one", tmp_path / "other"]
    outcomes = two_machines(folders, environment=slurm)
    for code, said in outcomes:
        assert code == 1 and "do not share the folder" in said and "paths.runs=PATH" in said and "Traceback" not in said, said
    assert not any((folder / "run").exists() for folder in folders)


@pytest.mark.slow
def test_machines_that_parts_are_written_by(tmp_path):
    """trainer=fsdp on several machines."""
    outcomes = two_machines([tmp_path, tmp_path], "trainer=fsdp", "trainer.num_nodes=auto", environment=slurm)
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert len(list((tmp_path / "run/checkpoints/shards").glob("*/0001.ckpt"))) == 1
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4


@pytest.fixture
def alone(monkeypatch):
    for names in LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_what_torchrun_and_slurm_say(alone):
    """Torchrun inside of SLURM is torchrun's."""
    alone.setenv("SLURM_STEP_NUM_NODES", "4")
    with pytest.raises(UserError, match="--ntasks-per-node=N"):
        machines()
    alone.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert machines() == {"num_nodes": 4, "devices": 8}
    alone.setenv("GROUP_WORLD_SIZE", "2")
    alone.setenv("LOCAL_WORLD_SIZE", "1")
    assert machines() == {"num_nodes": 2, "devices": 1}


def test_nobody_started_it(alone):
    with pytest.raises(UserError, match="say trainer=ddp"):
        machines()
    with pytest.raises(UserError, match="start them by torchrun --standalone --nproc_per_node=N"):
        processes(-1)


def test_one_device_of_several_processes(alone):
    """Which would train alone, each in the same folder."""
    for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        alone.setenv(name, "1")
    words = [*TINY, "trainer=cpu"]
    assert trainer_settings(composed(*words))["devices"] == 1
    alone.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun has started 2 processes, and trainer\.devices=1 is one: say trainer=ddp"):
        trainer_settings(composed(*words))


def test_all_there_are_of_a_cpu_are_those_that_were_started(alone):
    """On each machine; and a number that was said stays."""
    assert processes(3) == 3 and processes("2") == "2" and processes("auto") == "auto"
    alone.setenv("GROUP_WORLD_SIZE", "2")
    alone.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes(-1) == processes("-1") == 4 and processes(3) == 3
