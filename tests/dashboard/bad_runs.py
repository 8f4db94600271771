"""Runs' folders that no training writes: each is a way to end a reader, to hold it up, or to show what is not the run's."""

import json
import os
from itertools import pairwise

from made_runs import config, distance, losses, png, write_run

GOOD = [losses(10, 1), distance(10, 4)]
DEEP = "[" * 100_000
BOMB = "a: &a [1]\n" + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in pairwise("abcdefghi"))


def numbers(text):
    """A run whose metrics.jsonl has this text after good lines."""
    return lambda folder: write_run(folder, GOOD, config(), tail=text if isinstance(text, str) else json.dumps(text) + "\n")


def settings(text):
    """A run whose config.yaml is this text, or these bytes."""

    def write(folder):
        write_run(folder, GOOD)
        (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def instead(name, make):
    """A run in which `make(path)` stands in the place of a file."""

    def write(folder):
        write_run(folder, GOOD, config(), pictures=(10,))
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return write


def long_line(folder):
    """2 GB without an end of line, of which the disk holds nothing."""
    write_run(folder, GOOD, config())
    os.truncate(folder / "metrics.jsonl", 2**31)


LEFT_OUT = {
    "huge-number": numbers({"step": 20, "loss": 10**400}),
    "huge-in-a-list": numbers({"step": 20, "nll@9/terms": [10**400]}),
    "huge-step": numbers({"step": 10**30, "loss": 1}),
    "step-before-0": numbers({"step": -1, "loss": 1}),
    "passport-is-a-list": numbers(distance(20, 3) | {"passport": ["id"]}),
    "passport-id-is-a-list": numbers(distance(20, 3, id=[1])),
    "infinite-passport": numbers('{"step": 20, "fd-digits@100": 3, "passport": {"id": "a", "n": 1e999}}\n'),
    "deep-passport": numbers('{"step": 20, "loss": 3, "passport": {"id": "a", "n": ' + "[" * 500 + "]" * 500 + "}}\n"),
    "brackets": numbers(f'{{"step": 20, "loss": {DEEP}\n'),
    "images-is-a-list": numbers({"step": 20, "images": [1], "loss": 1}),
    "line-of-4-mb": numbers("x" * (2**22 + 1)),
    "line-of-2-gb": long_line,
    "pipe": instead("metrics.jsonl", os.mkfifo),
    "directory": instead("metrics.jsonl", os.mkdir),
    "device": instead("metrics.jsonl", lambda path: path.symlink_to("/dev/zero")),
    "link-out": instead("metrics.jsonl", lambda path: path.symlink_to(path.parents[1] / "secret.png")),
    "many-keys": numbers({"step": 20} | {f"key {i}": i for i in range(10_001)}),
}
SHOWN_IN_PART = {
    "not-utf-8": numbers({"step": 20, "loss": 1}),  # and a line of other bytes, below
    "config-is-a-pipe": instead("config.yaml", os.mkfifo),
    "config-is-a-directory": instead("config.yaml", os.mkdir),
    "config-is-a-link": instead("config.yaml", lambda path: path.symlink_to(path.parents[1] / "secret.png")),
    "config-brackets": settings("a: " + DEEP),
    "config-aliases": settings(BOMB),
    "config-not-utf-8": settings(b"a: \xff\xfe\n"),
    "config-a-list": settings("- 1\n"),
}
SILENT = {
    "huge-setting": settings("steps: 0x" + "f" * 6000 + "\nlr: .nan\n"),
    "odd-settings": settings("{steps: many, codec: {data_shape: '[['}, conditions: {num_classes: -5}, callbacks: {samples: {rows: 1e9}}}"),
    "odd-words": instead("words.yaml", lambda path: path.write_text("{typed: [a], choices: {schedule: {a: [1]}, 5: null}}")),
    "prototype": numbers({"step": 20} | {key: 1.0 for key in ("__proto__", "constructor", "toString", "hasOwnProperty", "@")}),
    "nan-and-infinity": numbers('{"step": 20, "loss": NaN, "a": Infinity, "b": 1e999, "c": -Infinity}\n'),
    "picture-out": instead("samples/main-step=00000010.png", lambda path: path.symlink_to(path.parents[2] / "secret.png")),
    "picture-pipe": instead("samples/main-step=00000010.png", os.mkfifo),
    "pictures-out": lambda folder: instead_of_samples(folder),
    "bad\udcff-name": numbers(""),
}


def instead_of_samples(folder):
    """The folder of pictures is a link to another's."""
    write_run(folder, GOOD, config())
    (folder / "samples").rmdir()
    (folder / "samples").symlink_to(folder.parent / "secrets")


def bad_runs(folder):
    """One run of each kind, and a good one; beside them, a picture that belongs to nobody here."""
    (folder / "secrets").mkdir(parents=True)
    for path in (folder / "secret.png", folder / "secrets" / "main-step=00000010.png"):
        path.write_bytes(png(77))
    for name, write in (LEFT_OUT | SHOWN_IN_PART | SILENT).items():
        write(folder / name)
    with open(folder / "not-utf-8" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 30, "lo\xffss": 1}\n')
    write_run(folder / "good", [losses(10, 1), distance(10, 4), distance(20, 3)], config(), pictures=(10,))
    return folder
