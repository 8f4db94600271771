"""python -m diffusion.attribute, as a user types it."""

import json

import pytest
from commands import command, small_run, succeeded

pytestmark = pytest.mark.xdist_group("attribute")


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return small_run(folder, "run", "guidance.scale=3", "ema_decay=0.5")


def test_the_parts_of_a_run_s_distance_add_up_to_it(guided_run):
    words = ["metric=fd_digits", "metric.n=40", f"paths.cache={guided_run.parent / 'cache'}", "device=cpu"]
    text = succeeded(command("-m", "diffusion.attribute", guided_run, *words))
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")][2:]
    assert [row[0].split(",")[0] for row in rows] == [
        "images of the data set itself",
        "the exact denoiser",
        "the run's last weights",
        "their average",
        "the run",
    ]
    changes = [float(row[2].partition(" ± ")[0].rpartition(" ")[2]) for row in rows]
    assert sum(changes) == pytest.approx(float(rows[-1][1]), rel=0.02)
    assert "because the images are not infinitely many" in text
    stages = [json.loads(line) for line in (guided_run / "attribute.jsonl").read_text().splitlines()]
    assert {line["command"]["program"] for line in stages} == {"attribute"}
    assert (guided_run / "attribute.md").read_text() in text
    own = succeeded(command("-m", "diffusion.evaluate", f"ckpt={guided_run}", *words, "name=own"))
    line = json.loads((guided_run / "own.jsonl").read_text())
    assert f"{line['fd-digits@40']:.3g}" == rows[-1][1] and own
    again = succeeded(command("-m", "diffusion.attribute", guided_run, *words))
    assert again.split("```")[2] == text.split("```")[2] and again.count("already") == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is not a run"),
        (["run"], "There is nothing to attribute"),
        (["run", "averaged=false"], "averaged= is not said here"),
        (["run", "metric=fd_digits", "dataset.split=test"], "dataset.split= is not said here"),
        (["run", "metric=nll_vlb"], "No metric here is a distance"),
        (["run", "metric=accuracy"], "No metric here is a distance"),
        (["run", "metric=fd_digits", "sampler=ddim,heun"], "diffusion.compare takes several"),
        (["run", "run"], "one run is attributed at a time"),
        (["run", "metric=fd_digits", "sampler=dim"], "dim is not one of the choices"),
    ],
)
def test_what_cannot_be_attributed_is_a_sentence(guided_run, words, said):
    there = sorted(guided_run.rglob("*"))
    result = command("-m", "diffusion.attribute", *(str(guided_run) if word == "run" else word for word in words))
    assert result.returncode == 1 and result.stderr.startswith("error: ") and said in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and sorted(guided_run.rglob("*")) == there
