"""python -m diffusion.diff: what changed between two runs, as a user reads it."""

import json
import shutil
from math import inf, nan

import pytest
import yaml
from commands import command, succeeded
from inside import lines, trained

from diffusion.diff import dotted_settings, told_apart, trained_run, what_changed
from diffusion.evaluation.again import near, said_otherwise
from diffusion.support.errors import UserError, printable

METRIC = ("metric=fd_digits", "metric.n=33", "log_every=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run twice, once with a higher rate after a step of warmup, and once with another seed and sampled in fewer steps."""
    place = tmp_path_factory.mktemp("runs")
    others = {"a": (), "again": (), "rate": ("optimizer.lr=0.01", "warmup=0"), "seed": ("seed=3", "grid.steps=2", "ema_decay=0.9")}
    return {name: trained(place / name, *METRIC, f"name={name}", *words) for name, words in others.items()}


def changed(a, b):
    return list(what_changed(trained_run(str(a)), trained_run(str(b))))


def write(folder, name, content):
    (folder / name).write_text(content)


def test_the_same_run_twice_is_the_same_bit_for_bit(runs):
    said = changed(runs["a"], runs["again"])
    assert "configuration: the same" in said and "environment: the same" in said and "fd-digits@33: measured alike" in said
    (numbers,) = [line for line in said if line.startswith("numbers")]
    assert numbers.endswith("the same bit for bit up to step 12")
    assert not any("path" in line or "name" in line for line in said)


def test_another_rate_parts_after_the_step_that_it_makes(runs):
    """The loss of step 1 is that of the weights before any step."""
    said = changed(runs["a"], runs["rate"])
    rates = [yaml.safe_load((runs[name] / "config.yaml").read_text())["optimizer"]["lr"] for name in ("a", "rate")]
    assert f"  optimizer.lr: {rates[0]} -> {rates[1]}" in said and not any(line.startswith("  seed") for line in said)
    (loss,) = [line for line in said if line.startswith("  loss: ")]
    values = [{line["step"]: line["loss"] for line in lines(runs[name] / "metrics.jsonl") if "loss" in line} for name in ("a", "rate")]
    assert values[0][1] == values[1][1] and loss.startswith(f"  loss: part at step 2, {values[0][2]:.6g} and {values[1][2]:.6g}")


def test_another_seed_parts_at_once_and_passports_say_how_it_was_measured(runs):
    said = changed(runs["a"], runs["seed"])
    assert "numbers: they part at step 0" in "\n".join(said) or "numbers: they part at step 1" in "\n".join(said)
    assert "  seed: 0 -> 3" in said
    (passport,) = [line for line in said if line.startswith("fd-digits@33: ")]
    assert "sampler.grid.steps 3 and 2" in passport and "ema.decay" in passport and passport.endswith("; else measured alike")


def test_a_run_of_before_says_less(runs, tmp_path):
    """Without an environment, with another code and data; and rounding is told from a difference."""
    old = tmp_path / "old"
    shutil.copytree(runs["a"], old)
    (old / "environment.yaml").unlink()
    records = lines(old / "metrics.jsonl")
    for record in records:
        if "loss" in record and record["step"] >= 5:
            record["loss"] *= 1.000001 if record["step"] < 8 else 1.1
        if "passport" in record:
            record["passport"] |= {"code": "0.0", "reference": record["passport"]["reference"] | {"sha256": "0" * 64}}
    write(old, "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    said = succeeded(command("-m", "diffusion.diff", runs["a"], old))
    assert f"environment: not recorded by {old}" in said and " -> 0.0\n" in said and f" -> {'0' * 16}" in said
    assert "loss: part at step 5, " in said and "; by more than 0.1% at step 8, " in said


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.yaml", "- 1", "no settings"),
        ("config.yaml", "a: [", "not a file of plain YAML"),
        ("metrics.jsonl", None, "no metrics.jsonl"),
    ],
)
def test_a_broken_folder_is_a_sentence(runs, tmp_path, name, content, word):
    broken = tmp_path / "broken"
    shutil.copytree(runs["a"], broken)
    write(broken, name, content) if content else (broken / name).unlink()
    result = command("-m", "diffusion.diff", runs["a"], broken)
    assert result.returncode == 1 and word in result.stderr and result.stderr.count("\n") == 1


def test_a_band_is_of_the_larger_one():
    assert near(1000.0, 1001.0) and not near(1000.0, 1002.0) and near(-1.0, -1.0005) and near(0.0, 0.0) and not near(0.0, 1e-9)
    assert near(None, None) and not near(None, 1.0)
    assert not near(inf, inf) and not near(1.0, inf) and not near(nan, nan)


def test_what_a_file_says_is_one_printable_line():
    """A key or a value that clears the terminal, or fakes a line of ours, is shown in one line."""
    fake = "\x1b[2J\nnumbers: all 20 the same bit for bit"
    for line in [*told_apart({fake: fake}, {}), *said_otherwise({"code": fake, "device": {fake: fake}, "environment": {}}, {"device": {}})]:
        assert line.isprintable()
    assert printable("a\nb") == "a b" and len(printable("x" * 1000)) == 60


def test_weights_that_one_does_not_say_are_told():
    around = {"code": "1", "device": "cpu", "environment": {}}
    assert said_otherwise(around, around | {"weights": "ab"}) == ["its weights are not recorded"]
    assert said_otherwise(around, around) == said_otherwise(around | {"weights": "ab"}, around | {"weights": "ab"}) == []


@pytest.mark.parametrize("paths", [5, [1, 2], "abc", None])
def test_paths_that_are_none_are_no_places(paths):
    assert dotted_settings({"paths": paths, "lr": 1.0}) == {"lr": 1.0}


def test_numbers_that_no_training_wrote(runs, tmp_path):
    """A line without end in depth is a sentence; a number larger than any float is not finite."""
    shutil.copytree(runs["a"], tmp_path / "b")
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "images": 1, "huge": 1e999}\n')
    assert trained_run(str(tmp_path / "b")).curves["huge"] == {12: None}
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="brackets without end"):
        trained_run(str(tmp_path / "b"))
