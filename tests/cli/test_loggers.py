"""Every logger says the same as metrics.jsonl and samples/, at the optimizer's steps, in each job of a sweep and in a resumed run."""

import csv
import io
import json
import struct

import numpy as np
import pytest
import yaml
from commands import SMALL, command, succeeded
from PIL import Image

wandb = pytest.importorskip("wandb")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
LOGGERS = ["logger=[csv,tensorboard,wandb]", "logger.offline=true"]
METRIC = ["metric=[fd_digits,memorization]", "metric.n=33"]
NAMES = ("fd-digits@33", "memorized-pixels@33")
SPENT, AT = "evaluation_seconds", "trainer/global_step"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sweep of two jobs in one process, with one batch to an optimizer step and with two."""
    folder = tmp_path_factory.mktemp("runs")
    where = [f"paths.runs={folder}", "name=run", f"paths.cache={folder / 'cache'}"]
    succeeded(
        command("train.py", "-m", *SMALL, "steps=4", "eval_every=2", "eval_at_start=true", *METRIC, *LOGGERS, *where, "accumulate=1,2")
    )
    return folder


def recorded(folder):
    """{(name, step): value} of the numbers in metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in line.items() if number(name, value)}


def number(name, value):
    return isinstance(value, float | int) and name not in ("step", "images", "time", "since")


def pictures(folder):
    """{(name, step): pixels} of samples/."""
    split = {path: path.stem.split("-step=") for path in (folder / "samples").iterdir()}
    return {(f"samples/{name}", int(step)): pixels(path) for path, (name, step) in split.items()}


def pixels(file):
    return np.array(Image.open(file).convert("RGB")).tolist()


def in_csv(folder):
    with open(folder / "csv" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {(name, int(row["step"])): float(text) for row in rows for name, text in row.items() if text and name != "step"}


def in_tensorboard(folder):
    """Its scalars (float32) and images."""
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    images = {(tag, e.step): pixels(io.BytesIO(e.encoded_image_string)) for tag in events.Tags()["images"] for e in events.Images(tag)}
    return scalars, images


def wandb_records(path):
    """The protocol buffers in a .wandb file: chunks of a LevelDB log (crc, length, kind) in blocks of 32 KiB, after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0 or 32768 - at % 32768 < 7:  # what is left of a block is padding
            at += 32768 - at % 32768
            continue
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def in_wandb(folder):
    """The ids of its runs, their numbers, images and configuration; each row's step is the axis that wandb was told to draw against."""
    ids, numbers, images, config = set(), {}, {}, {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):  # by when they began
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            for item in (record.run.config if kind == "run" else record.config).update:
                config[item.key or item.nested_key[0]] = json.loads(item.value_json)
            if kind == "metric" and record.metric.glob_name:
                assert (record.metric.glob_name, record.metric.step_metric) == ("*", AT)
            if kind == "history":
                row = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in record.history.item}
                step = row.pop((AT,))
                numbers |= {(key[0], step): value for key, value in row.items() if len(key) == 1 and not key[0].startswith("_")}
                found = {key[0]: path.parent / "files" / value[0] for key, value in row.items() if key[1:] == ("filenames",)}
                images |= {(key, step): pixels(file) for key, file in found.items()}
    return ids, numbers, images, config


def assert_agree(folder):
    """Not only in common: neither has what the other has not."""
    numbers, drawn, (scalars, images) = recorded(folder), pictures(folder), in_tensorboard(folder)
    assert in_csv(folder) == numbers
    assert scalars.keys() == numbers.keys()
    assert all(np.float32(value) == np.float32(scalars[key]) for key, value in numbers.items())
    assert images == drawn
    ids, logged, shown, config = in_wandb(folder)
    assert ids == {folder.name} and logged == numbers and shown == drawn
    known = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: config[key] for key in known} == known  # what a sweep's runs are told apart by
    assert f"accumulate: {known['accumulate']}\n" in (folder / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.xdist_group("loggers")
@pytest.mark.parametrize("job", [0, 1], ids=["one batch a step", "two batches a step"])
def test_loggers_say_what_metrics_jsonl_says(runs, job):
    folder = runs / f"run-{job}"
    assert all({step for name, step in recorded(folder) if name == wanted} == {0, 2, 4} for wanted in (*NAMES, SPENT))
    assert {key for key in pictures(folder)} >= {("samples/main", 2), ("samples/main", 4), ("samples/memorized-pixels@33", 4)}
    assert_agree(folder)


@pytest.mark.xdist_group("loggers")
def test_a_resumed_run_goes_on_in_the_same_curves(runs):
    folder = runs / "run-1"
    before = recorded(folder)
    succeeded(command("train.py", f"resume={folder}", "steps=6"))
    after = recorded(folder)
    assert before.items() <= after.items() and (NAMES[0], 6) in after
    seconds = [after[SPENT, step] for step in (0, 2, 4, 6)]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3]  # of all evaluations so far, across the resumption
    assert_agree(folder)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2  # two parts of one run, as its id says
    assert [path for path in (folder / "tensorboard").iterdir() if path.is_dir()] == []
