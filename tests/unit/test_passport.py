"""Passports and metrics.jsonl."""

import json
import os
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from diffusion.metrics import Passport, code_version, write_metrics
from diffusion.support.errors import UserError
from diffusion.support.files import writing_in
from diffusion.support.hashes import tensors_hash

PASSPORT = Passport(
    metric="fd-digits@1k",
    n=1000,
    quantisation="uint8",
    extractor={"name": "digits", "weights_hash": "0123", "dim": 64, "resize": "none"},
    reference={"name": "digits", "split": "train", "n": 1797, "sha256": "ab"},
    statistics="45",
    sampler={"name": "DDIM", "eta": 0.0, "grid": "trailing"},
    nfe=50,
    guidance=None,
    ema=0.999,
    seeds={"first": 0, "number": 1000},
    step=100,
    code="0.1.0",
)


def test_a_hash_leaves_the_weights_memory_to_its_owner():
    """Which FSDP frees when a module that was gathered is measured."""
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(4, dtype=torch.bfloat16)}
    first = tensors_hash(weights)
    assert all(tensor.untyped_storage().resizable() for tensor in weights.values())
    assert tensors_hash({"a": weights["a"].contiguous(), "b": weights["b"]}) == first != tensors_hash({"a": weights["a"]})


def test_id_is_stable():
    assert PASSPORT.id == replace(PASSPORT).id
    # Ours, frozen on the day it was written: old metrics.jsonl files must keep matching new ones.
    assert PASSPORT.id == "a334a2a21acd"
    assert PASSPORT.to_dict()["id"] == PASSPORT.id
    json.dumps(PASSPORT.to_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"n": 999},
        {"metric": "fid@1k"},
        {"quantisation": "png"},
        {"extractor": {**PASSPORT.extractor, "resize": "bilinear"}},
        {"reference": {**PASSPORT.reference, "split": "test"}},
        {"sampler": {**PASSPORT.sampler, "eta": 1.0}},
        {"guidance": {"scale": 2.0}},
        {"ema": None},
        {"seeds": {"first": 1, "number": 1000}},
    ],
)
def test_what_changes_the_number_changes_the_id(change):
    assert replace(PASSPORT, **change).id != PASSPORT.id


def test_one_curve_has_one_id():
    assert replace(PASSPORT, step=200, code="0.2.0", statistics="46").id == PASSPORT.id


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        PASSPORT.n = 5


def test_code_version_names_the_commit():
    assert code_version()
    assert "\n" not in code_version()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_appended(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    for step in range(3):
        write_metrics(path, {"step": step, "passport": PASSPORT.to_dict()})
    assert [record["step"] for record in lines(path)] == [0, 1, 2]
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("kept", [0, 1, 20, 70_000])
def test_half_a_line_is_cut_off(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, {"step": 0})
    with path.open("a") as file:
        file.write(json.dumps({"step": 1, "note": "é" * 100_000})[:kept])
    write_metrics(path, {"step": 2})
    assert lines(path) == [{"step": 0}, {"step": 2}]


def test_a_file_of_half_a_line_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "va')
    write_metrics(path, {"step": 1})
    assert lines(path) == [{"step": 1}]


def test_a_line_that_only_lacks_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}')
    write_metrics(path, {"step": 1})
    assert lines(path) == [{"step": 0}, {"step": 1}]


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (2, float("-inf"))}})
    assert lines(path) == [{"a": None, "b": [1.5, None], "c": {"d": [2, None]}}]


def test_a_record_that_is_no_plain_data_leaves_the_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, {"step": 0})
    with pytest.raises(TypeError):
        write_metrics(path, {"step": object()})
    assert lines(path) == [{"step": 0}]


@pytest.mark.parametrize("there", [b"theirs, without an end", None])
def test_a_link_out_of_the_folder_is_not_written_through(tmp_path, there):
    """A run's folder may come from anywhere: neither cut, nor added to, nor made."""
    run, secret = tmp_path / "run", tmp_path / "secret"
    run.mkdir()
    if there:
        secret.write_bytes(there)
    (run / "compare.jsonl").symlink_to(secret)
    with writing_in([run]), pytest.raises(UserError, match=r"which leads to .*secret"):
        write_metrics(run / "compare.jsonl", {"step": 0})
    assert secret.read_bytes() == there if there else not secret.exists()


def test_a_pipe_is_not_written_to(tmp_path):
    os.mkfifo(tmp_path / "compare.jsonl")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        write_metrics(tmp_path / "compare.jsonl", {"step": 0})
