"""Runs' folders as training writes them, made up."""

import json
import struct
import zlib

import yaml


def passport(steps=50, **others):
    """One of Distance's, in short; its id follows from the sampler's steps."""
    sampler = {"name": "DDIM", "grid": {"name": "Trailing", "steps": steps}}
    return {"id": f"{steps:012x}", "metric": "fd-digits@100", "n": 100, "sampler": sampler, "step": 0, "code": "0.1.0"} | others


def losses(step, value):
    """A line of Losses, with two quarters."""
    return {"step": step, "images": 8 * step, "time": 1e9 + step, "loss": value} | {f"loss/t{i}of2": value for i in (1, 2)}


def distance(step, value, **passport_fields):
    """A line of Distance."""
    made = passport(**passport_fields) | {"step": step}
    return {"step": step, "images": 8 * step, "time": 1e9 + step, "fd-digits@100": value, "passport": made, "metric": "fd-digits@100"}


def config(schedule="Cosine", lr=0.001, steps=100):
    """A resolved configuration, which says everything twice."""
    parts = {"schedule": {"_target_": f"diffusion.schedules.{schedule}"}, "optimizer": {"lr": lr, "betas": [0.9, 0.999]}}
    parts["schedule"] |= {"s": 0.008} if schedule == "Cosine" else {"beta_start": 0.0001}
    return {"name": f"{schedule}-{lr}", "steps": steps, **parts, "task": parts}


def png(grey):
    """A PNG of one pixel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes([0, grey]))) + chunk(b"IEND", b"")


def write_run(folder, records, configuration=None, pictures=(), tail="", words=None):
    """metrics.jsonl, config.yaml, words.yaml and samples/ in `folder`; `tail` is what a killed writer left."""
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    if configuration is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(configuration))))  # no part shared, so no aliases
    if words is not None:
        (folder / "words.yaml").write_text(yaml.safe_dump(words))
    for step in pictures:
        (folder / "samples" / f"main-step={step:08d}.png").write_bytes(png(step % 256))
    return folder


def sweep(folder):
    """Four runs, a 2 x 2 sweep, one of them with another passport; run i takes i + 1 seconds a step."""
    for i, (schedule, lr) in enumerate((schedule, lr) for schedule in ("Linear", "Cosine") for lr in (0.001, 0.002)):
        records = [losses(step, 1 / (step + i + 1)) for step in range(10, 101, 10)]
        records += [distance(step, 100 - step / 2 - 10 * i, steps=50 if i < 3 else 20) for step in (0, 50, 100)]
        records = [record | {"time": 1e9 + record["step"] * (i + 1)} for record in sorted(records, key=lambda record: record["step"])]
        write_run(folder / f"{schedule}-{lr}", records, config(schedule, lr), pictures=(50, 100))
    return folder
