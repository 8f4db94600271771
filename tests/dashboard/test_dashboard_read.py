"""Runs as they lie on the disk, half written, resumed and many, become plain data."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import config, distance, losses, passport, write_run

from diffusion.dashboard.read import Reader, flat, read_run
from diffusion.support.errors import UserError

ROOT = Path(__file__).parents[2]


def values(run, key):
    """{step: value} of one key."""
    series = run.series[key]
    return {run.steps[at]: pytest.approx(value) for at, value in zip(series.at, series.values, strict=True)}


def test_a_run_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "a", [distance(0, 9.5), losses(10, 1.5), distance(10, 4.25)], config(), pictures=(10, 5)))
    assert (run.name, run.steps, run.images, run.seconds) == ("a", [0, 10], [0, 80], [0, 10])
    assert values(run, "loss") == {10: 1.5} and values(run, "fd-digits@100") == {0: 9.5, 10: 4.25}
    assert [step for step, _ in run.samples["main"]] == [5, 10]
    assert run.config["schedule"] == "Cosine" and run.config["optimizer.betas"] == "[0.9, 0.999]"
    assert set(run.series) == {"loss", "loss/t1of2", "loss/t2of2", "fd-digits@100"}


def test_a_passport_belongs_to_its_number_and_is_kept_once(tmp_path):
    run = read_run(write_run(tmp_path / "a", [losses(0, 1), distance(0, 9), distance(10, 4), distance(20, 3, steps=20)]))
    first, second, third = run.series["fd-digits@100"].passports
    assert first is second and first["id"] == passport()["id"] and third["id"] == passport(steps=20)["id"]
    assert "step" not in first and run.series["loss"].passports == [None]


@pytest.mark.parametrize(
    "tail", ['{"step": 30, "loss": 0.', '{"step": 30', "\n", "[1, 2]\n", '{"loss": 3}\n', "\xff\n", '{"step": 30, "lo\x00']
)
def test_what_a_killed_writer_left_is_passed_over(tmp_path, tail):
    assert values(read_run(write_run(tmp_path / "a", [losses(10, 1), losses(20, 2)], tail=tail)), "loss") == {10: 1, 20: 2}


def test_of_a_step_recorded_twice_the_later_counts(tmp_path):
    """A run killed after step 30 and resumed from 10: what it recorded first at 20 and 30 is replaced when it gets there again."""
    first, again = [losses(10, 1), losses(20, 2), losses(30, 3)], [losses(20, 5), losses(40, 4)]
    run = read_run(write_run(tmp_path / "a", [*first, *again]))
    assert values(run, "loss") == {10: 1, 20: 5, 30: 3, 40: 4}


def test_the_pause_before_a_resumed_run_is_not_wall_time(tmp_path):
    records = [losses(10, 1), losses(20, 1), losses(20, 1) | {"time": 2e9}, losses(30, 1) | {"time": 2e9 + 7}]
    assert read_run(write_run(tmp_path / "a", [*records[:2], losses(10, 1) | {"time": 2e9 - 10}, *records[2:]])).seconds == [0, 10, 17]


def test_a_run_that_goes_on_where_it_was_saved_says_so(tmp_path):
    """By `since`, the time at which its process began to train: no step is made again, and the pause is none of the seconds."""
    first, then = [losses(step, 1) | {"since": 1e9 + 5} for step in (10, 20)], [losses(step, 1) | {"time": 2e9 + step} for step in (30, 40)]
    again = [line | {"since": 2e9 + 23} for line in then]
    assert read_run(write_run(tmp_path / "a", [*first, *again])).seconds == [5, 15, 15 + 7, 15 + 17]
    assert read_run(write_run(tmp_path / "b", [losses(10, 1), losses(20, 1), *again])).seconds == [0, 10, 10 + 7, 10 + 17]  # an older one
    assert "since" not in read_run(tmp_path / "a").series


def test_numbers_that_were_not_finite_are_gaps(tmp_path):
    run = read_run(write_run(tmp_path / "a", [losses(10, None)], tail='{"step": 20, "loss": NaN}\n{"step": 30, "loss": 1}\n'))
    assert [value == value for value in run.series["loss"].values] == [False, False, True]


def test_lists_are_profiles_and_the_last_is_kept(tmp_path):
    """What a number is without each group of its images is no profile."""
    records = [{"step": 1, "nll@9/terms": [1, 2.5]}, {"step": 2, "nll@9/terms": [3, None], "nll@9/without": [1.0, 2.0], "words": ["a"]}]
    run = read_run(write_run(tmp_path / "a", records))
    assert run.profiles["nll@9/terms"][0] == 2 and run.profiles["nll@9/terms"][1][0] == 3 and list(run.profiles) == ["nll@9/terms"]


@pytest.mark.parametrize("text", [None, "", "a: [", "- 1", "\xff\x00"])
def test_without_a_readable_configuration_there_are_still_numbers(tmp_path, text):
    folder = write_run(tmp_path / "a", [losses(10, 1)])
    if text is not None:
        (folder / "config.yaml").write_text(text, encoding="latin-1")
    assert read_run(folder).config == {} and read_run(folder).steps == [10]


def test_configurations_by_dotted_keys():
    assert flat({"a": {"_target_": "x.y.Z", "b": [1], "c": None}, "d": float("inf")}) == {"a": "Z", "a.b": "[1]", "a.c": None, "d": "inf"}


def test_an_empty_run_and_other_folders(tmp_path):
    write_run(tmp_path / "begun", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "multirun.yaml").write_text("")
    assert [(run.name, run.steps, run.series) for run in Reader(tmp_path)()] == [("begun", [], {})]


def test_only_what_changed_is_read_again(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, [losses(10, 1)])
    reader = Reader(tmp_path)
    first = reader()
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "loss": 2}\n')
    second = reader()
    assert second[0] is first[0] and second[1].steps == [10, 20]
    os.remove(tmp_path / "a" / "metrics.jsonl")
    assert [run.name for run in reader()] == ["b"]


def test_a_run_runs_as_long_as_its_process(tmp_path):
    """Killed outright, it has stopped at once; one without a lock cannot be asked."""
    folder, reader = write_run(tmp_path / "a", [losses(10, 1)]), Reader(tmp_path)
    assert reader()[0].running is None
    holding = "import sys, time; from diffusion.support.files import lock\nwith lock(sys.argv[1]): print(1, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holding, str(folder / ".lock")], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout.readline() and [run.running for run in reader()] == [True]
        finally:
            process.kill()
    assert [run.running for run in reader()] == [False]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Reader(tmp_path / "nowhere")


def test_thousands_of_runs(tmp_path):
    """2,000 in well under a minute, and again in less."""
    for number in range(2000):
        write_run(tmp_path / f"run-{number:04d}", [losses(step, 1) for step in range(5)], {"seed": number})
    reader = Reader(tmp_path)
    assert len(reader()) == 2000
    start = time.perf_counter()
    assert len(reader()) == 2000 and time.perf_counter() - start < 5


def test_published_numbers_that_are_none_are_said(tmp_path):
    """And the run is shown without them."""
    run = read_run(write_run(tmp_path / "a", [distance(0, 9.5)], config() | {"published": {"results": [{"metric": "fid"}]}}))
    assert run.published == {} and run.series
    assert run.warnings == ["its published numbers are not shown, because published.results has a number without value"]
