"""python benchmarks/dashboard.py [--runs N] [--points N] — how large the dashboard's page gets, and how long it takes to write and open.

Writes N made-up runs (each with a distance and 18 loss curves of that many points, a passport at each distance), reads them, writes the
page and, where there is a Chromium, opens it: the seconds until two frames are drawn after the load event, the curves in view among them.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

from diffusion.dashboard import Pictures, Reader, contents, html

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dashboard"))
from browser import CHROMIUM, Browser

TERMS = [f"loss{term}{quarter}" for term in ("", "/simple", "/vlb") for quarter in ("", "/t1of4", "/t2of4", "/t3of4", "/t4of4")]
PASSPORT = {"id": "0123456789ab", "metric": "fd-digits@1000", "n": 1000, "extractor": {"name": "digits", "weights_hash": "7214f0bc"}}


def write_run(folder, number, points):
    """metrics.jsonl and config.yaml of one made-up run."""
    folder.mkdir()
    generator, lines = random.Random(number), []
    for i in range(points):
        step, fall = 50 * i, math.exp(-i / points * generator.uniform(2, 3))
        facts = {"step": step, "images": 128 * step, "time": 1.8e9 + step / 10}
        lines.append(facts | {term: fall * generator.uniform(0.9, 1.1) for term in TERMS} | {"gradient_norm": fall, "learning_rate": 1e-3})
        lines.append(facts | {"fd-digits@1000": 500 * fall * generator.uniform(0.95, 1.05), "passport": PASSPORT | {"step": step}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    schedule = generator.choice(["Linear", "Cosine"])
    settings = {"steps": 50 * points, "seed": number % 5, "schedule": {"_target_": f"a.{schedule}"}, "lr": generator.uniform(1e-4, 1e-2)}
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML


def timed(name, work):
    """Its result, its time printed."""
    start = time.perf_counter()
    result = work()
    print(f"{name:32s} {time.perf_counter() - start:7.2f} s", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number in range(given.runs):
            write_run(folder / f"run-{number:04d}", number, given.points)
        reader = Reader(folder)
        runs = timed(f"read {given.runs} runs", reader)
        timed("read again, nothing changed", reader)
        text = timed("write the page", lambda: html(contents(runs, Pictures(runs, 0))))
        (folder / "page.html").write_text(text)
        print(f"{'the page':32s} {len(text) / 2**20:7.1f} MB")
        if CHROMIUM is None:
            return print("no Chromium here to open it with")
        browser = Browser(folder / "profile")
        try:
            for attempt in ("first", "second"):
                print(f"{f'open it, {attempt} time':32s} {browser.open(f'file://{folder}/page.html'):7.2f} s")
            print(f"{'curves drawn':32s} {browser.js('document.querySelectorAll(`#curves .js-line`).length'):7d} traces")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
