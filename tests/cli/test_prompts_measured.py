"""metric=prompt_accuracy and sweep=prompts, as they are typed, on a run that has hardly been trained."""

import inside
import pytest
from composing import composition

from diffusion.evaluation import tables
from diffusion.metrics import objects


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "STEPS", 20)
        words = (
            "dataset=captioned_digits",
            "dataset.image_size=16",
            "dataset.num_classes=200",
            "dataset.n=600",
            "metric.n=8",
            "metric.groups=2",
            "metric.prompt_accuracy.scenes.n=600",
        )
        small = ("network.channels=8", "conditions.encoder.depth=1", "conditions.encoder.channels=16", "steps=2", "eval_every=2")
        yield inside.trained(tmp_path_factory.mktemp("runs") / "run", *words, *small, "lr_schedule=constant")


KEYS = [f"{word}-{what}@8" for word in ("prompt", "heldout") for what in ("places", "objects")]


def test_a_training_records_it_with_what_it_is_compared_with(run):
    (line,) = [line for line in inside.lines(run / "metrics.jsonl") if "prompt-places@8" in line]
    for key in KEYS:
        assert 0 <= line[key] <= 1 and line[f"{key}/error"] >= 0
        assert 0 <= line[f"{key}/chance"] <= 1 and 0 <= line[f"{key}/real"] <= 1
    assert line["passport"]["conditions"]["prompts"]["count"] == 8
    assert line["passport"]["reference"]["split"] == "test" and line["passport"]["reference"]["heldout"]["split"] == "heldout"


def test_evaluate_gives_the_same_numbers_and_a_table_of_all_four(run, tmp_path):
    (trained,) = [line for line in inside.lines(run / "metrics.jsonl") if "prompt-places@8" in line]
    measured = inside.measured(run, tmp_path / "out.jsonl")
    assert {key: measured[key] for key in KEYS} == {key: trained[key] for key in KEYS}
    assert measured["passport"]["id"] == trained["passport"]["id"]
    inside.measured(run, tmp_path / "out.jsonl", "guidance.scale=3", "sampler=ddim", "grid.steps=2")
    text = tables.save(tmp_path / "out.jsonl", "the command")
    for key in KEYS:
        assert f"{key}, and in brackets the calls of the denoiser; the best of each column in bold. Of real pictures: " in text
        assert f"{measured[f'{key}/real']:.3g}; by chance at most" in text
    rows = [row for row in tables.layout(tables.read_cells(tmp_path / "out.jsonl")) if row["metric"] == KEYS[0]]
    assert len(rows) == 2 and all(row["higher"] for row in rows)


def test_of_accuracies_the_highest_is_bold():
    row = {"label": "ddim", "grid": "Karras", "calls": 2, "error": None, "n": 8, "seconds": 1, "passport": "", "code": "", "steps": 2}
    row["published"] = ""
    rows = [row | {"metric": "accuracy@8", "value": value, "label": label, "higher": True} for label, value in (("a", 0.2), ("b", 0.9))]
    assert "**0.9**" in tables.markdown(rows, "") and "**0.2**" not in tables.markdown(rows, "")


def test_the_sweep_composes():
    cfg = composition("ckpt=x", "sweep=prompts", name="evaluate")
    assert cfg.name == "prompts"
