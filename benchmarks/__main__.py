"""python -m benchmarks [--device cpu|cuda] [--rows NAME ...] [--rounds N] [--out FILE] [--smoke] — ratios to peers on the same work.

`make benchmark` is this. README.md here says what the rows measure. Measure on a machine with nothing else to do.
"""

import argparse
import gc
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from diffusion.support.errors import UserError, one_sentence
from diffusion.support.files import require_writable
from diffusion.support.host import keep_freed_memory

from . import rows, sizes
from .harness import Result, measured
from .results import HEAD, Report, lines, machine, sides, table
from .work import Bench


def main(words: list[str] | None = None) -> int:
    """The command; its exit code is 1 if a row died."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these alone in this order, or all that begin so: training sampling-ddim")
    parser.add_argument("--rounds", type=int, help="3 by default")
    parser.add_argument("--out", type=Path, help="benchmarks/results.json, or part.json of some rows and of --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny: whether it runs, not how fast")
    parser.add_argument("--list", action="store_true", help="the rows' names, and nothing else")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here.")
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: at least 1.")
    size = sizes.SMOKE if given.smoke else {"cpu": sizes.CPU, "cuda": sizes.CUDA}[given.device]
    torch.set_float32_matmul_precision("high")  # of all sides in this process, whichever rows there are; train.py's own default
    if given.device == "cpu":
        keep_freed_memory()  # as sample.py does; of all sides in this process, too
    with TemporaryDirectory(prefix="benchmark-") as folder:
        bench = Bench(given.device, size, Path(folder))
        known = rows.every(bench)
        if given.list:
            print(*(f"{row.name:28s} {row.what}" for row in known.values()), sep="\n")
            return 0
        chosen = list(dict.fromkeys(name for said in given.rows or [""] for name in known if name.startswith(said)))
        if strangers := [said for said in given.rows or [] if not any(name.startswith(said) for name in known)]:
            parser.error(f"--rows {' '.join(strangers)}: the rows are {', '.join(known)}.")
        out = given.out or Path(__file__).parent / ("part.json" if given.smoke or given.rows else "results.json")
        with one_sentence():
            require_writable(out.parent, "--out")
            if out.is_dir():
                raise UserError(f"--out {out} is a folder: say a file.")
        return run(bench, [known[name] for name in chosen], given.rounds or size.rounds, out)


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(signum: int, frame: object) -> None:
    """What is told to end leaves what there is, and no process; told again meanwhile it does not hear."""
    for told in ENDS:
        signal.signal(told, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(bench: Bench, chosen: list, rounds: int, out: Path) -> int:
    """Measure these rows, printing each and writing the file as it ends; Ctrl-C leaves what there is."""
    facts = {"machine": machine(bench.device), "sizes": vars(bench.sizes), "rounds": rounds}
    print(*(f"{key}: {value}" for key, value in facts["machine"].items()), sep=", ", end="\n\n", flush=True)
    report, results, start, code = Report(out, facts), [], time.perf_counter(), 0
    for row in chosen:
        results.append(result := Result(row.name, row.what, row.unit))
        try:
            measured(row, rounds, bench.device, result)
        except KeyboardInterrupt:
            code = 130
        report.keep(result)
        print(*sides(result), "", *HEAD, *lines(result), "", sep="\n", flush=True)
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        if code:
            break
    print(*table(results), f"\n{time.perf_counter() - start:.0f} s in all; every round in {out}", sep="\n", flush=True)
    return code or int(any(result.died for result in results))


if __name__ == "__main__":
    for told in ENDS:
        if signal.getsignal(told) != signal.SIG_IGN:  # as nohup has it
            signal.signal(told, end)
    sys.exit(main())
