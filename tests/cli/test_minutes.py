"""minutes=N: a training ends after that long as if its steps were done, on all processes at once, and goes on for N more."""

import json
import re

import pytest
import torch
from commands import SMALL, command, succeeded
from processes import two_ranks

from diffusion.config import training_hash
from diffusion.training.callbacks.agreement import Agreement
from diffusion.training.callbacks.interruption import timed_out

ENDLESS = [*SMALL, "steps=100000", "eval_every=100000", "checkpoint_every=100000", "logger=none", "name=run"]


def content(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ended(output):
    """The step that the line at the end says."""
    (step,) = re.findall(r"minutes=[\d.]+ are over: the training ends at step ([\d,]+) of 100,000", output)
    return int(step.replace(",", ""))


def places(folder):
    return [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}"]


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A run that its time has ended, and what it said."""
    folder = tmp_path_factory.mktemp("limited")
    return folder / "run", succeeded(command("train.py", *ENDLESS, "minutes=0.03", *places(folder)))


def test_it_ends_as_if_its_steps_were_done(limited, tmp_path):
    """The weights, their average, the losses and the pictures of a training of so many steps, and what is said at the end."""
    run, output = limited
    step = ended(output)
    assert "100,000 steps of batch_size=8, or as many as minutes=0.03 allow" in output and "sample from it" in output
    assert content(run)["global_step"] == step > 1
    assert (run / f"samples/main-step={step:08d}.png").exists() and lines(run)[-1]["step"] == step
    succeeded(command("train.py", *ENDLESS, f"steps={step}", *places(tmp_path)))
    ours, theirs = content(run), content(tmp_path / "run")
    for a, b in ((ours["state_dict"], theirs["state_dict"]), (ours["ema"]["shadow"], theirs["ema"]["shadow"])):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    read = [[line["loss"] for line in lines(folder) if "loss" in line] for folder in (run, tmp_path / "run")]
    assert read[0] == read[1]
    assert timed_out(ours) and not timed_out(theirs)


def test_a_resumed_run_has_as_long_again_or_what_is_typed(limited):
    run, output = limited
    first = ended(output)
    second = ended(succeeded(command("train.py", f"resume={run}", *places(run.parent)[1:])))
    third = ended(succeeded(command("train.py", f"resume={run}", "minutes=0.02")))
    assert first < second < third == content(run)["global_step"]
    output = succeeded(command("train.py", f"resume={run}", "minutes=null", f"steps={third + 2}"))
    assert "minutes" not in output and content(run)["global_step"] == third + 2
    assert not timed_out(content(run))


def test_steps_that_are_done_first_end_it(tmp_path):
    output = succeeded(command("train.py", *ENDLESS, "steps=3", "minutes=10", *places(tmp_path)))
    assert "are over" not in output and content(tmp_path / "run")["global_step"] == 3


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "[1]"])
def test_what_is_no_time_is_refused(tmp_path, value):
    result = command("train.py", *ENDLESS, f"minutes={value}", *places(tmp_path))
    said = result.stderr.strip().splitlines()
    assert result.returncode == 1 and len(said) == 1 and "minutes" in said[0] and not (tmp_path / "run").exists(), result.stderr


def test_two_processes_end_at_the_same_step(tmp_path):
    output = succeeded(command("train.py", *ENDLESS, "trainer.devices=2", "minutes=0.03", *places(tmp_path)))
    assert content(tmp_path / "run")["global_step"] == ended(output) == lines(tmp_path / "run")[-1]["step"]


WORKER = """
import json, sys
import torch.distributed as dist
from diffusion.training.callbacks.agreement import Agreement

rank, rendezvous, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
agreement = Agreement()
agreement.begin()
with open(output, "w") as file:
    json.dump([agreement(int(step >= (4 if rank else 2))) for step in range(6)], file)
dist.destroy_process_group()
"""


def test_ranks_whose_clocks_differ_agree_one_step_later(tmp_path):
    """The first rank's time is over at step 2, the second's at step 4: both know it after step 3."""
    assert two_ranks(WORKER, tmp_path) == [[0, 0, 0, 1, 1, 1]] * 2


def test_one_rank_knows_at_once():
    agreement = Agreement()
    agreement.begin()
    assert [agreement(said) for said in (0, 1, 15)] == [0, 1, 15]


def test_a_limit_is_part_of_what_a_job_is_and_none_is_as_before_there_was_one(tiny):
    """A sweep over minutes has a job for each; jobs of before keep their identity."""
    config = tiny()
    without = {key: value for key, value in config.items() if key != "minutes"}
    hashes = [training_hash({**config, "minutes": minutes}) for minutes in (None, 1.0, 2.0)]
    assert training_hash(without) == hashes[0] and len(set(hashes)) == 3


def test_a_job_that_its_minutes_have_ended_is_done(tmp_path):
    """The same sweep again goes on with nothing."""
    sweep = ["train.py", "-m", *ENDLESS, "seed=1", "minutes=0.01", *places(tmp_path)]
    (run,) = (file.parents[1] for file in [*(succeeded(command(*sweep)) and tmp_path.glob("*/checkpoints/last.ckpt"))])
    step = content(run)["global_step"]
    assert "done already" in succeeded(command(*sweep)) and content(run)["global_step"] == step
