"""python -m diffusion.evaluate, as a user types it: one run, a table that is killed and goes on, several processes."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from commands import ROOT, SMALL, command, succeeded
from inside import trained
from PIL import Image

METRIC = ["metric=fd_digits", "metric.n=33"]
NAME = "fd-digits@33"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
EXACT = ["ckpt=exact", "dataset=synthetic", "dataset.image_size=8", "dataset.channels=1", "dataset.num_classes=4", "dataset.n=50"]
SWEEP = ["-m", *EXACT, *METRIC, "floor=true", "sampler=ddim,heun", "grid.steps=3,5,1000"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    where = [f"paths.runs={folder}", "name=run", "logger=none", f"paths.cache={folder / 'cache'}"]
    succeeded(command("train.py", *SMALL, *METRIC, *where, "schedule.num_timesteps=50"))
    return folder / "run"


@pytest.mark.xdist_group("evaluate")
def test_a_run_gives_the_number_that_its_training_saw(run, tmp_path):
    """The same images and the same passport, and the line goes where the dashboard reads; two processes agree with one."""
    seen = next(line for line in reversed(lines(run / "metrics.jsonl")) if NAME in line)
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={run}", "grid.steps=3", "device=cpu"))
    again = lines(run / "metrics.jsonl")[-1]
    assert again["cell"] and again["step"] == seen["step"] == 6 and again["images"] == seen["images"] == 48
    assert again[NAME] == pytest.approx(seen[NAME], rel=1e-9)
    assert again["passport"]["id"] == seen["passport"]["id"]
    out = tmp_path / "two.jsonl"
    words = ["metric=fd_digits", "metric.n=33", f"paths.cache={tmp_path}", "grid.steps=3", "device=cpu", f"out={out}"]
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={run}", *words, launcher=TORCHRUN))
    assert [line[NAME] for line in lines(out)] == [pytest.approx(seen[NAME], rel=1e-6)]


@pytest.mark.xdist_group("evaluate")
def test_a_killed_table_goes_on(tmp_path):
    """Killed between cells, and with half a line at the end of its file, it measures again only what is not there."""
    out = tmp_path / "cells.jsonl"
    words = ["-m", "diffusion.evaluate", *SWEEP, f"paths.cache={tmp_path}", f"paths.runs={tmp_path}", f"out={out}", "device=cpu"]
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(lines_there(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    before = lines_there(out)
    assert 3 <= len(before) < 7
    with open(out, "a") as file:
        file.write('{"cell": {"ckpt"')
    said = succeeded(command(*words))
    after = lines(out)
    assert after[: len(before)] == before and len(after) == 7  # 2 samplers x 3, and the data set itself
    assert len({json.dumps(line["cell"], sort_keys=True) for line in after}) == 7
    assert said.count("already") == len(before) - 1
    assert {line["passport"]["nfe"] for line in after} == {0, 3, 4, 5, 9, 1000, 1999}  # of 3 steps Heun makes one down a cliff
    assert all({"id", "extractor", "sampler", "seeds", "code"} <= line["passport"].keys() for line in after)
    assert "| heun | Karras |" in out.with_suffix(".md").read_text() and "| heun | Karras |" in said
    assert out.with_suffix(".csv").read_text().count("\n") == 8


def lines_there(path):
    """The whole lines of a file that is being written."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def test_a_mistake_is_a_sentence(tmp_path):
    result = command("-m", "diffusion.evaluate", *METRIC, f"paths.cache={tmp_path}")
    assert result.returncode == 1
    assert "ckpt=runs/NAME" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.xdist_group("evaluate")
def test_pictures_lie_beside_the_lines(run, tmp_path):
    """The likeliest copies and the bound's terms: one file for each line of a sweep, which names it, and the log says where."""
    out = tmp_path / "seen.jsonl"
    words = ["metric=[memorization,nll_vlb]", "metric.n=21", "metric.nll_vlb.images=3", "grid.steps=2", "seed=0,7", "device=cpu"]
    said = succeeded(command("-m", "diffusion.evaluate", "-m", f"ckpt={run}", *words, f"paths.cache={tmp_path}", f"out={out}"))
    pairs, bound, *others = lines(out)
    assert len({line["picture"] for line in (pairs, bound, *others)}) == 4
    assert all(str(tmp_path / line["picture"]) in said for line in (pairs, bound, *others))
    assert Image.open(tmp_path / pairs["picture"]).size == (2 + 10 * 34, 2 + 2 * 34)  # ten pairs of images enlarged to 32
    terms = np.array(Image.open(tmp_path / bound["picture"]).convert("L"))
    assert terms.shape == (360, 810) and len(np.unique(terms)) > 20  # 9 x 4 inches, and something drawn
    assert len(bound["nll-vlb@3/terms"]) == len(bound["nll-vlb@3/fraction"]) == 50


def test_a_table_against_guidance_and_p_uncond(tmp_path):
    """Two runs that differ in p_uncond, at two scales: a file in each run's folder, one table in runs/, whose rows are p_uncond; and the
    sweep's own scales, where none is typed, are the paper's."""
    for name, share in (("a", "0.1"), ("b", "0.5")):
        words = ["metric=none", "steps=1", "eval_every=9", f"p_uncond={share}", "optimizer.lr=0.1", "lr_schedule=constant"]
        folder = trained(tmp_path / name, *words, f"paths.runs={tmp_path}")
        (folder / "words.yaml").write_text(yaml.safe_dump({"typed": {"p_uncond": share, "name": name}}))
    words = ["guidance.scale=1,3", "grid.steps=2", "device=cpu", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    said = succeeded(command("-m", "diffusion.evaluate", f"ckpt={tmp_path / 'a'},{tmp_path / 'b'}", "sweep=guidance", *words, *METRIC))
    assert [len(lines(tmp_path / name / "guidance.jsonl")) for name in "ab"] == [2, 2]
    text = (tmp_path / "guidance.md").read_text()
    names = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| p")]
    assert text in said and names == ["| p_uncond=0.1", "| p_uncond=0.5"]
    assert "| scale 1 | scale 3 |" in text and (tmp_path / "guidance.png").is_file()
    printed = yaml.safe_load((ROOT / "conf" / "sweep" / "guidance.yaml").read_text())["hydra"]["sweeper"]["params"]["guidance.scale"]
    assert [round(float(scale) - 1, 9) for scale in printed.split(",")] == [*(w / 10 for w in range(11)), 2, 3, 4]  # CFG table 1


@pytest.mark.slow
@pytest.mark.xdist_group("evaluate")
def test_published_numbers_stand_beside(run, tmp_path):
    """Of a word that is typed, with what forbids the comparison and what would mend it, when a cell is measured and when it is there
    already; none of published=none; and below a table, where each cell has the number that was sampled as it was."""
    out = tmp_path / "beside.jsonl"
    words = [f"ckpt={run}", *METRIC, "grid.steps=3", "device=cpu", f"paths.cache={tmp_path}", f"out={out}"]
    for again in ("", "already"):
        said = succeeded(command("-m", "diffusion.evaluate", *words, "published=ddpm_cifar10"))
        assert again in said and "published: fid 3.17 of 50,000 images" in said and "(2006.11239, table 1): not comparable: " in said
        assert "extractor inception there, digits here (metric=fid); number of images 50,000 there, 33 here (metric.n=50000)" in said
        assert "data set cifar10 there, synthetic here (dataset=cifar10)" in said and "classes here" in said
    assert "published:" not in succeeded(command("-m", "diffusion.evaluate", *words, "published=none"))
    out = tmp_path / "table.jsonl"
    swept = [*(word for word in words if not word.startswith(("grid", "out"))), "sampler=ddim", "grid.steps=10,20", f"out={out}"]
    table = succeeded(command("-m", "diffusion.evaluate", "-m", *swept, "published=ddim_cifar10"))
    below = table.split("Published:")[1]
    assert [line.split(" of ")[0] for line in below.splitlines() if line.startswith("* ")] == ["* fid 13.36", "* fid 6.84"]
    assert out.with_suffix(".md").read_text() in table


def test_a_training_says_what_its_paper_measured(tmp_path):
    """In one of its first lines, before anything is read; a file that is none is a sentence."""
    words = ["train.py", "experiment=ddpm_cifar10", "dataset=synthetic", f"paths.runs={tmp_path}", "logger=none", "name=a"]
    result = command(*words, "dataset.n=0")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("published: ")]
    assert line.startswith("published: fid 3.17 of 50,000 images, ") and "(2006.11239, table 1)" in line
    assert result.returncode == 1 and "dataset.n=0" in result.stderr
    result = command(*words, "published.where=null")
    assert result.returncode == 1 and result.stderr.strip() == "error: published.results has a number without where."
    assert not (tmp_path / "a").exists()
