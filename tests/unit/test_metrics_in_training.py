"""Several metrics in one run: what is recorded, and that training does not notice."""

import json

import torch

from diffusion.training.run import train


def recorded(config, folder):
    train(config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_recorded_and_change_nothing(tiny, tmp_path):
    words = ["fd", "kid", "memorization", "nll_vlb", "nll_ode"]
    small = ["metric.n=70", "metric.extractor=DigitsClassifier", "metric.groups=2", "metric.kid.subset_size=20", "metric.kid.subsets=3"]
    bits = ["metric.nll_vlb.images=4", "metric.nll_ode.images=4", "metric.nll_ode.rtol=0.01", "metric.nll_ode.atol=0.01"]
    short = ["steps=4", "eval_every=2", "schedule.num_timesteps=10", "ema.decay=0.9", "callbacks.distance.at_start=false"]
    with_metrics = recorded(tiny(*short, f"metric=[{','.join(words)}]", *small, *bits), tmp_path / "with")
    without = recorded(tiny(*short, "metric=none"), tmp_path / "without")
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (with_metrics, without)]
    assert losses[0] == losses[1] and len(losses[0]) == 3  # the first step's too
    weights = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("with", "without")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    last = {line["metric"]: line for line in with_metrics if line["step"] == 4 and "metric" in line}
    assert set(last) == {"fd-digits@70", "kd-digits@70", "memorized-digits@70", "nll-vlb@4", "nll-ode@4"}
    assert all(line[name] is not None and line["passport"]["metric"] == name for name, line in last.items())
    assert {"fd-digits@70/error", "passport"} <= last["fd-digits@70"].keys()
    assert {"kd-digits@70/std", "kd-digits@70/error"} <= last["kd-digits@70"].keys()
    assert last["kd-digits@70"]["passport"]["settings"] == {"subsets": 3, "subset_size": 20, "seed": 0}
    bound = last["nll-vlb@4"]
    assert len(bound["nll-vlb@4/terms"]) == len(bound["nll-vlb@4/fraction"]) == 10
    assert abs(sum(bound["nll-vlb@4/terms"]) + bound["nll-vlb@4/prior"] - bound["nll-vlb@4"]) < 1e-4 * bound["nll-vlb@4"]
    assert bound["passport"]["settings"]["clip"] is True and bound["passport"]["n"] == 4
    assert len(list((tmp_path / "with/samples").glob("memorized-digits@70-step=*.png"))) == 2


def test_milestones_have_more_images(tiny, tmp_path):
    """The cheap number at each evaluation; the full one, under its own name, at milestones and at the end; a likelihood once."""
    words = ["metric=[fd,nll_vlb]", "metric.n=40", "metric.extractor=DigitsClassifier", "metric.groups=2", "metric.nll_vlb.images=4"]
    short = ["steps=5", "eval_every=2", "milestone_every=4", "milestone_n=60", "eval_at_start=true", "schedule.num_timesteps=10"]
    lines = recorded(tiny(*short, *words), tmp_path)
    steps = {name: [line["step"] for line in lines if name in line] for name in ("fd-digits@40", "fd-digits@60", "nll-vlb@4")}
    assert steps == {"fd-digits@40": [0, 2, 4, 5], "fd-digits@60": [4, 5], "nll-vlb@4": [0, 2, 4, 5]}
    assert {line["passport"]["n"] for line in lines if "fd-digits@60" in line} == {60}
