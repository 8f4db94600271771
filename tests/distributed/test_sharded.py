"""A training whose weights, optimizer and averages are in parts on two processes: it is the training of one process, and what it writes is
read by any number of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from composing import TINY, composed
from equal_runs import fit, kept, log
from processes import two_ranks
from test_equal_runs import WORKER, assert_equal

from diffusion.checkpoint import read_checkpoint
from diffusion.shards import Parts

E = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """What could depend on it, as in test_equal_runs.py; and weights whose rows do not divide by two."""
    return composed(
        *TINY,
        f"paths.cache={tmp_path_factory.mktemp('cache')}",
        *("schedule.num_timesteps=6", "times=importance", "times.history=2", "objective=min_snr", "ema=posthoc"),
        *("dataset.flip=true", "p_uncond=0.3", "warmup=5", "optimizer.lr=0.002", f"batch_size={E}", "steps=20", "dataset.num_classes=4"),
    )


@pytest.fixture(scope="module")
def folders(config, tmp_path_factory) -> dict[str, Path]:
    """Runs of one process, and of two in parts: from their start, in two batches to a step, begun, and gone on with what one began."""
    place = tmp_path_factory.mktemp("runs")
    found = {name: place / name for name in ("alone", "begun alone", "parts", "batches", "begun", "resumed")}
    for name in ("alone", "begun alone", "parts", "batches", "begun"):
        found[name].mkdir()
    fit(config, found["alone"])
    fit(config, found["begun alone"], until=10)
    shutil.copytree(found["begun alone"], found["resumed"])
    jobs = {"parts": {}, "batches": {"accumulate": 2}, "begun": {"until": 10}, "resumed": {}}
    words = json.dumps([config, [(str(found[name]), job | {"shard": True}) for name, job in jobs.items()]])
    two_ranks(WORKER, place, "2", words, timeout=600)
    return found


@pytest.mark.xdist_group("sharded")
@pytest.mark.parametrize("name", ["parts", "batches", "resumed"])
def test_it_is_the_run_of_one_process(folders, name):
    """Weights, averages, history, and what was recorded, the gradient's norm among it; also of one that a single process began."""
    assert_equal(folders[name], folders["alone"])


@pytest.mark.xdist_group("sharded")
def test_one_process_goes_on_with_it(config, folders, tmp_path):
    assert_equal(fit(config, shutil.copytree(folders["begun"], tmp_path / "run")), folders["alone"])


@pytest.mark.xdist_group("sharded")
def test_the_file_is_as_that_of_one_process(folders):
    """The same names, shapes and numbers of the optimizer."""
    ours, theirs = (read_checkpoint(folders[name] / "last.ckpt") for name in ("parts", "alone"))
    (ours, theirs) = [state["optimizer_states"][0] for state in (ours, theirs)]
    assert [group["params"] for group in ours["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=1e-10, atol=1e-12)


@pytest.mark.xdist_group("sharded")
def test_one_process_reads_what_the_processes_have_together(folders):
    """Bit for bit what torch gathers of them, on both."""
    read = read_checkpoint(folders["parts"] / "last.ckpt")["state_dict"]
    for rank in range(2):
        gathered = torch.load(folders["parts"] / f"gathered-{rank}.pt", weights_only=True)
        assert gathered and all(torch.equal(read[name], weight) for name, weight in gathered.items())


@pytest.mark.xdist_group("sharded")
def test_each_process_wrote_its_half(folders):
    """Of the weights, of both moments and of each average, none of which is in the file that names the parts."""
    found = read_checkpoint(folders["parts"] / "last.ckpt", whole=False)
    places = [found["state_dict"], *found["optimizer_states"][0]["state"].values()]
    places += [average["shadow"] for average in (found["ema"], *found["ema"]["averages"])]
    tensors = [value for place in places for value in place.values() if isinstance(value, Parts)]
    whole = sum(parts[:].numel() for parts in tensors)
    for rank in range(2):
        assert sum(parts.parts[rank].numel() for parts in tensors) < 0.55 * whole
    assert whole > 5.9 * sum(p.numel() for name, p in kept(folders["alone"]).items() if name.startswith("denoiser."))
    assert (folders["parts"] / "last.ckpt").stat().st_size < 200_000 < sum(f.stat().st_size for f in folders["parts"].glob("shards/*/*"))


@pytest.mark.xdist_group("sharded")
def test_rows_are_those_of_the_whole(folders):
    """Read by pieces, across the parts' borders."""
    for parts in read_checkpoint(folders["parts"] / "last.ckpt", whole=False)["state_dict"].values():
        if isinstance(parts, Parts):
            whole, n = parts[:], parts.shape[0]
            assert torch.equal(whole, torch.cat(parts.parts))
            for start, stop in ((0, n), (0, 1), (n // 3, 2 * n // 3 + 1), (n - 1, n), (n, n + 5)):
                assert torch.equal(parts[start:stop], whole[start:stop])


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_more_processes_go_on_with_the_parts_of_two(config, folders, tmp_path, world):
    """Whose rows begin elsewhere."""
    if E % world:
        config = config | {"batch_size": 12}
        (alone, begun) = (tmp_path / name for name in ("alone", "begun"))
        alone.mkdir(), begun.mkdir()
        fit(config, alone)
        two_ranks(WORKER, tmp_path, "2", json.dumps([config, [(str(begun), {"shard": True, "until": 10})]]), timeout=600)
    else:
        alone, begun = folders["alone"], folders["begun"]
    (work := tmp_path / "work").mkdir()
    run = shutil.copytree(begun, tmp_path / "run")
    two_ranks(WORKER, work, str(world), json.dumps([config, [(str(run), {"shard": True})]]), world=world, timeout=600)
    assert_equal(run, alone)
    assert log(run)
