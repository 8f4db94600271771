"""python -m benchmarks.gpu_check [--part tests|bench|train|distance ...] [--minutes N] [--device cuda|cpu] [--data FOLDER]
[--wheels FOLDER] [--out FOLDER] — the parts in this order, each within N minutes, going on where the same command stopped."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check import wheels
from benchmarks.gpu_check.check import Check, environment
from benchmarks.gpu_check.commands import ROOT
from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.pieces import LIST, join
from benchmarks.gpu_check.sizes import size
from benchmarks.gpu_check.state import State, sources_hash
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import lock

LEFT = 75  # the exit code where something is left to do: the same command goes on (EX_TEMPFAIL)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--part", nargs="+", choices=[part.name for part in PARTS], default=[part.name for part in PARTS])
    parser.add_argument("--minutes", type=float, default=8.5, help="for each part (8.5)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--data", type=Path, help="the data sets' root, or a folder of pieces of it")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, of which those are used that this Python lacks")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="for what is kept, small (runs/gpu-check)")
    parser.add_argument("--work", type=Path, help="for runs, caches and logs (OUT-work)")
    args = parser.parse_args(given)
    if not 0 < args.minutes <= 60:
        parser.error(f"--minutes {args.minutes:g} is none that a part takes: say a number of minutes up to 60")
    for key in ("data", "wheels"):
        if (folder := getattr(args, key)) is not None and not folder.is_dir():
            parser.error(f"--{key} {folder} is no folder")
    return args


def facts(device: str, environment: dict[str, str]) -> dict[str, str]:
    """What this machine is. Raises UserError where it has not the device, or lacks a package."""
    imports = "import hydra, matplotlib, omegaconf, pytest, pytest_timeout, pytorch_lightning, sklearn"
    lines = {"": ["-m", "benchmarks.gpu_check.machine", device], ", which --wheels FOLDER can bring": ["-c", imports]}
    said = []
    for remedy, line in lines.items():
        done = subprocess.run([sys.executable, *line], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"This machine cannot be checked: {reason.rstrip('.')}{remedy}.")
        said.append(done.stdout)
    return json.loads(said[0])


def prepared(args: argparse.Namespace) -> Check:
    """All that can refuse has been tried; then the folders are made, and an old check of something else is put aside."""
    out = args.out.absolute()
    work = (args.work or out.with_name(f"{out.name}-work")).absolute()
    chosen = size(args.device, args.minutes, args.data)
    around = environment(wheels.importable(args.wheels, work / "site") if args.wheels else None)
    machine = facts(args.device, around)
    data = args.data.absolute() if args.data else None
    if data and (data / LIST).exists():
        data = join(data, work / "data")
    key = {"code": sources_hash(), "device": machine["device"], "size": chosen.name}
    out.mkdir(parents=True, exist_ok=True)
    state = State(out, key)
    if state.before:
        print(f"begun anew: what is in {out} is of {state.before}, and this is of {key}", flush=True)
        set_aside(out)
    state.content["machine"] = machine
    state.save()
    around["TORCHINDUCTOR_CACHE_DIR"] = str(work / "compiled")
    place = work / "-".join([key["code"], args.device, chosen.name])
    return Check(out, place, args.device, args.minutes, chosen, data, state, PARTS, around)


def set_aside(out: Path) -> None:
    """What there is of another check: its report stays, as before.md; numbers and pictures go."""
    if (out / "report.md").exists():
        shutil.move(out / "report.md", out / "before.md")
    for name in ("tests.jsonl", "results.json", "curve.png", "samples.png", "kept-*.tar.gz"):
        for file in out.glob(name):
            file.unlink()


def interrupted(signum: int, _: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    args = arguments()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupted)
    with one_sentence():
        work = args.work or args.out.with_name(f"{args.out.name}-work")
        try:
            with lock(work / "lock", wait=False):
                check = prepared(args)
                well = check.go(args.part)
        except BlockingIOError:
            raise UserError(f"Another process is at {args.out}: wait for it, or say another --out.") from None
        except KeyboardInterrupt:
            print(f"\nstopped; what there is stands in {args.out / 'report.md'}, and the same command goes on", file=sys.stderr)
            return 130
    print(f"{check.out / 'report.md'}" + ("" if well is not None else ": something is left; the same command goes on"))
    return {True: 0, False: 1, None: LEFT}[well]


if __name__ == "__main__":
    sys.exit(main())
