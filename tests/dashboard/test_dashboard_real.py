"""What the metrics really record is what the dashboard reads: intervals with their meaning, terms over t, pictures, time."""

import json

import pytest
from real_runs import BOUND, DISTANCES, OF_IMAGES, WITH_ERROR, T, real_run

from diffusion.dashboard import Pictures, Reader, contents
from diffusion.dashboard.read import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return real_run(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


def points(run, key):
    return dict(zip((run.steps[at] for at in run.series[key].at), run.series[key].values, strict=True))


@pytest.mark.parametrize("name", [*WITH_ERROR, *(f"{name}/second" for name in OF_IMAGES)])
def test_every_distance_has_an_error_at_every_step_and_says_what_it_is(run, name):
    assert points(run, name).keys() == points(run, f"{name}/error").keys() == {0, 2, 4}
    assert all(0 <= value < float("inf") for value in points(run, f"{name}/error").values())
    assert min(points(run, f"{name}/error").values()) > 0 or name.split("/")[0] not in DISTANCES
    for passport in run.series[name].passports:
        assert passport["intervals"]["error"].startswith("standard error")


def test_the_terms_of_the_bound_are_profiles_beside_their_number(run):
    """Of the model, not of a way to sample: measured once, without guidance."""
    step, terms = run.profiles[f"{BOUND}/terms"]
    assert step == 4 and len(terms) == len(run.profiles[f"{BOUND}/fraction"][1]) == T
    assert sum(terms) + points(run, f"{BOUND}/prior")[4] == pytest.approx(points(run, BOUND)[4], rel=1e-5)
    assert {key.rpartition("/")[0] for key in run.profiles} <= run.series.keys()  # by which the page finds their passport
    assert f"{BOUND}/second" not in run.series
    assert {(passport["sampler"]["name"], passport["guidance"]) for passport in run.series[BOUND].passports} == {("none", None)}


def test_time_and_pictures_are_there_to_choose(folder, run):
    runs = Reader(folder.parent)()
    [shown] = json.loads(json.dumps(contents(runs, Pictures(runs, 10**7), "runs"), allow_nan=False))["runs"]
    assert "evaluation_seconds" in shown["series"]
    assert 0 < points(run, "evaluation_seconds")[0] < points(run, "evaluation_seconds")[2] < points(run, "evaluation_seconds")[4]
    assert shown["samples"].keys() == {"main", "second", "memorized-digits@70", "memorized-digits@70-second", BOUND}
