"""A run does not depend on how its steps are made: on how many processes, and in how many batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from composing import ROOT, TINY, composed
from equal_runs import fit, kept, log
from made_autoencoders import autoencoder
from processes import two_ranks

WORKER = """
import json, sys
from equal_runs import as_rank

rank, rendezvous, world, words, output = sys.argv[1:]
as_rank(int(rank), int(world), rendezvous, *json.loads(words))
open(output, "w").write("null")
"""
E = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """All that could depend on it: importance-sampled t whose history is full after a few steps, min-SNR weights, post-hoc averages,
    dropped conditions and flips."""
    return composed(
        *TINY,
        f"paths.cache={tmp_path_factory.mktemp('cache')}",
        *("schedule.num_timesteps=6", "times=importance", "times.history=2", "objective=min_snr", "ema=posthoc"),
        *("dataset.flip=true", "p_uncond=0.3", "warmup=5", "optimizer.lr=0.002", f"batch_size={E}", "steps=20"),
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The folder of the run on one process, with one batch to a step."""
    return fit(config, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def begun(config, tmp_path_factory) -> Path:
    """The same when 10 of its steps are made."""
    return fit(config, tmp_path_factory.mktemp("begun"), until=10)


def together(config: dict, folder: Path, begun: Path, world: int, *jobs: dict) -> list[Path]:
    """The folders of runs that `world` processes made, each job by `fit`'s options, and of one that they went on with."""
    names = [folder / str(i) for i in range(len(jobs))] + [folder / "resumed"]
    for name in names[:-1]:
        name.mkdir()
    shutil.copytree(begun, names[-1])
    words = json.dumps([config, [(str(name), job) for name, job in zip(names, [*jobs, {"accumulate": 2}], strict=True)]])
    two_ranks(WORKER, folder, str(world), words, world=world, timeout=600)
    return names


def assert_equal(found: Path, expected: Path, tolerance: float = 1e-12):
    """Weights, averages and history, and what was recorded."""
    ours, theirs = kept(found), kept(expected)
    assert ours.keys() == theirs.keys() and any("average 2" in name for name in ours) and "times.losses" in ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for line, other in zip(log(found), log(expected), strict=True):
        assert line == pytest.approx(other, rel=1e-5)  # the log's means are of float32


def test_the_run_is_one_in_which_it_would_show(alone, begun):
    """The history is full, so that t is drawn by it; the weights have moved far from where they began."""
    now, before = kept(alone), kept(begun)
    assert (now["times.losses"] > 0).all() and now["times.losses"].std() > 0.01
    assert max((now[name] - before[name]).abs().max() for name in now) > 0.01


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation(config, alone, tmp_path, accumulate):
    assert_equal(fit(config, tmp_path, accumulate), alone)


def test_a_run_goes_on_in_other_batches(config, alone, begun, tmp_path):
    assert_equal(fit(config, shutil.copytree(begun, tmp_path / "run"), accumulate=4), alone)


def test_two_processes(config, alone, begun, tmp_path):
    """One batch to a step and two; and a run begun on one process that is resumed on two, in other batches."""
    for folder in together(config, tmp_path, begun, 2, {}, {"accumulate": 2}):
        assert_equal(folder, alone)


@pytest.mark.slow
def test_two_processes_in_latents(tmp_path):
    """Each draws from the posterior what belongs to the places of its pictures, mirrored or not."""
    words = ["codec=autoencoder", f"codec.ckpt={autoencoder(tmp_path / 'vae')}", f"paths.cache={tmp_path / 'cache'}", "codec.cached=false"]
    training = ["objective=simple", "optimizer.lr=0.002", "warmup=1", "dataset.flip=true", "steps=4", f"batch_size={E}"]
    config = composed(*TINY, *words, *training)
    folders = [tmp_path / "alone", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    two_ranks(WORKER, tmp_path, "2", json.dumps([config, [(str(folders[1]), {"accumulate": 2})]]), timeout=600)
    torch.testing.assert_close(kept(folders[1]), kept(fit(config, folders[0])), rtol=1e-10, atol=1e-11)


OBJECTIVES = {path.stem: [] for path in sorted((ROOT / "conf/objective").glob("*.yaml")) if path.stem != "custom"} | {
    "edm": ["schedule=edm", "parameterization=edm"],
    "edm2": ["schedule=edm", "parameterization=edm"],
    "cross_entropy": ["task=classifier"],
    "ssm": ["objective.projections=2"],
    "reconstruction": ["task=autoencoder"],
    "reconstruction_gan": ["task=autoencoder", "objective.w=0", "objective.adversary.weight=0"],  # whose weight is each batch's own
    "reconstruction_scaled": ["task=autoencoder"],
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective, tmp_path):
    """Its own draws too are those of a sample's place."""
    words = [f"paths.cache={tmp_path}", f"objective={objective}", *OBJECTIVES[objective], "steps=3", "optimizer.lr=0.01", "warmup=1"]
    config = composed(*(word for word in TINY if not word.startswith("callbacks")), *words)
    for accumulate in (1, 2):
        (tmp_path / str(accumulate)).mkdir()
        fit(config, tmp_path / str(accumulate), accumulate)
    torch.testing.assert_close(kept(tmp_path / "2"), kept(tmp_path / "1"), rtol=1e-10, atol=1e-11)  # Adam divides by small gradients


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_texts(world, tmp_path):
    """Captions, dropped ones too, with an encoder that is trained with the network: in two batches to a step, or on two processes."""
    cut = ("dataset", "callbacks", "steps", "batch_size")
    words = ["dataset=captioned_digits", "dataset.n=32", "conditions=text", "conditions.encoder.depth=1", "network.attention=[8]"]
    words += ["p_uncond=0.4", "batch_size=8", "steps=3", "optimizer.lr=0.01", "warmup=1", f"paths.cache={tmp_path}"]
    config = composed(*(word for word in TINY if not word.startswith(cut)), *words)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    fit(config, one)
    if world == 1:
        fit(config, other, accumulate=2)
    else:
        two_ranks(WORKER, tmp_path, "2", json.dumps([config, [(str(other), {})]]), world=2, timeout=600)
    assert any("encoder" in name for name in kept(one))
    torch.testing.assert_close(kept(other), kept(one), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("network", ["digits", "dit_digits"])
def test_recomputed_blocks(network, tmp_path):
    """With a learned variance, whose gradient reaches the mean in one term and not in another."""
    words = [word for word in TINY if not word.startswith("network")] + [
        f"network={network}",
        f"paths.cache={tmp_path / 'cache'}",
        "steps=3",
    ]
    words += ["objective=hybrid", "optimizer.lr=0.01", "warmup=1", *(["network.dropout=0.2"] if network == "digits" else [])]
    runs: list[dict] = []
    for on in ("false", "true"):
        (folder := tmp_path / on).mkdir()
        runs.append(kept(fit(composed(*words, f"network.checkpointing={on}"), folder)))
    for name, value in runs[0].items():
        assert torch.equal(runs[1][name], value), name


@pytest.mark.slow
def test_a_discriminator_on_two_processes(tmp_path):
    """The adaptive weight and the discriminator's gradients are those of the whole batch."""
    words = ["task=autoencoder", "objective.adversary.weight=0.5", "objective.adversary.start=1", "objective.adversary.channels=4"]
    tiny = (word for word in TINY if not word.startswith("callbacks"))
    config = composed(*tiny, f"paths.cache={tmp_path}", *words, "dataset.flip=true", "steps=4", "optimizer.lr=0.01", "warmup=1")
    alone, *_ = folders = [tmp_path / name for name in ("alone", "both")]
    for folder in folders:
        folder.mkdir()
    fit(config, alone)
    two_ranks(WORKER, tmp_path, "2", json.dumps([config, [(str(folders[1]), {})]]), world=2, timeout=600)
    torch.testing.assert_close(kept(folders[1]), kept(alone), rtol=1e-9, atol=1e-10)
    theirs, own = (torch.load(folder / "last.ckpt", weights_only=True)["adversary"]["network"] for folder in folders)
    torch.testing.assert_close(theirs, own, rtol=1e-9, atol=1e-10)
    lines = log(alone)
    assert lines[-1]["loss/adversarial_weight"] > 0 and lines[-1] == pytest.approx(log(folders[1])[-1], rel=1e-5)


@pytest.mark.slow
def test_four_processes(config, alone, begun, tmp_path):
    for folder in together(config, tmp_path, begun, 4, {}, {"accumulate": 2}, {"accumulate": 4}):
        assert_equal(folder, alone)
