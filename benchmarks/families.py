"""python benchmarks/families.py [EXPERIMENT ...] [--runs runs/families]

Train the digits' experiments (all, or those named), one after the other at their full length, and write docs/families.md and .png from
every one of them that is done in RUNS. One whose folder is there is not run again, so several of these commands share the work; what
was stopped half-way is to be removed first.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent
FAMILIES = {
    "iddpm_digits": "L_hybrid, learned variance, T = 4000",
    "ddpm_digits": "eps, linear betas, ancestral steps",
    "ddim_digits": "the same, 30 steps without noise",
    "iddpm_vlb_digits": "L_vlb, importance-sampled t",
    "x0_digits": "x_0, truncated-SNR weights",
    "min_snr_digits": "x_0, min-SNR-5 weights",
    "v_digits": "v, cosine",
    "v_zsnr_digits": "v, zero terminal SNR, rescaled guidance",
    "ncsn_digits": "20 noise levels, annealed Langevin",
    "ncsn_ssm_digits": "sliced score matching, annealed Langevin",
    "score_sde_ve_digits": "VE SDE, predictor-corrector",
    "score_sde_vp_digits": "VP SDE, predictor-corrector",
    "score_sde_subvp_digits": "sub-VP SDE, probability-flow ODE",
    "edm_digits": "preconditioning, 18 Heun steps",
    "edm2_digits": "learned weighting, post-hoc EMA",
    "flow_digits": "flow matching, uniform t, Euler",
    "flow_sd3_digits": "rectified flow, logit-normal t",
}
CELL, GAP, LABEL = 32, 2, 200  # pixels: of an image in a sample grid, between two, and for the words before a row

HEAD = """# The training families, measured

Each row is `python train.py experiment=NAME` as it stands, once, with seed 0: 1,200 steps unless its file says otherwise, on scikit-learn's
1,797 digits. fd-digits is the Fréchet distance of 1,000 images of the averaged weights, by the sampler that the family's paper uses;
1,000 real digits score 1.7, noise about 490. Seconds are processor time of one thread, the four measurements on the way included, on a
machine that had much else to do. (iddpm_vlb_digits took 144 s on the clock with one thread, on a machine less busy and measured once.)

The samplers and their calls differ from row to row, and one seed is one seed: the table shows that each family works, not which is best.
v_zsnr_digits is guided (scale 1.5), which makes clearer and less varied digits: unguided, the same run's distance is 3.5.

![ten digits of each](families.png)

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", default=list(FAMILIES), metavar="EXPERIMENT")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/families")
    args = parser.parse_args()
    for name in args.experiments:
        if not (args.runs / name).exists():
            run(name, args.runs)
    done = {n: json.loads((args.runs / n / "done.json").read_text()) for n in FAMILIES if (args.runs / n / "done.json").exists()}
    (ROOT / "docs/families.md").write_text(HEAD + table(done))
    picture(done, args.runs).save(ROOT / "docs/families.png", optimize=True)


def run(name: str, runs: Path) -> None:
    """Train, and leave the last distance and the processor time in done.json."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "train.py", f"experiment={name}", f"name={name}", f"paths.runs={runs.resolve()}"], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "fd-digits@1k" in line][-1]
    done = {"fd": last["fd-digits@1k"], "calls": last["passport"]["nfe"], "steps": last["step"]}
    (runs / name / "done.json").write_text(json.dumps(done | {"seconds": round(after.ru_utime - before.ru_utime)}))


def table(done: dict[str, dict]) -> str:
    """Markdown, a row for each run."""
    rows = ["| experiment | what it is | steps | calls an image | fd-digits@1k | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in done.items():
        rows.append(f"| {name} | {FAMILIES[name]} | {row['steps']} | {row['calls']} | {row['fd']:.3g} | {row['seconds']} |")
    return "\n".join([*rows, "", "```", "OMP_NUM_THREADS=1 python benchmarks/families.py", "```", ""])


def picture(done: dict[str, dict], runs: Path) -> Image.Image:
    """A labelled row for each run: the first image of each class in its last sample grid."""
    pitch, font = CELL + GAP, ImageFont.load_default(size=15)
    image = Image.new("RGB", (LABEL + 10 * pitch, len(done) * (pitch + 4)), "white")
    draw = ImageDraw.Draw(image)
    for i, (name, row) in enumerate(done.items()):
        top = i * (pitch + 4)
        draw.text((4, top + 8), f"{name.removesuffix('_digits')}   {row['fd']:.3g}", "black", font)
        grid = Image.open(sorted((runs / name / "samples").glob("*.png"))[-1])
        for c in range(10):
            y = GAP + c * pitch
            image.paste(grid.crop((GAP, y, GAP + CELL, y + CELL)), (LABEL + c * pitch, top + 2))
    return image


if __name__ == "__main__":
    main()
