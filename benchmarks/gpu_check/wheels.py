"""Wheels of what a machine without network may lack: made where there is a network, and made importable there.

python -m benchmarks.gpu_check.wheels FOLDER      # makes them"""

import argparse
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.gpu_check.commands import ROOT, last_line
from diffusion.support.errors import UserError, one_sentence

NEEDED = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "pytest-timeout")
PEERS = ("diffusers", "importlib-metadata", "zipp", "torch-fidelity", "k-diffusion", "torchdiffeq", "torchsde", "trampoline", "dctorch")
PEERS += (
    "clean-fid",
    "clip-anytorch",
    "ftfy",
    "wcwidth",
    "jsonmerge",
    "kornia",
    "einops",
    "denoising-diffusion-pytorch",
    "ema-pytorch",
    "pytorch-fid",
)


def pip(*words: str, log: Path) -> None:
    """This Python's pip. Raises UserError with the last that it said."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        code = subprocess.run([sys.executable, "-m", "pip", *words], stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise UserError(f"pip {words[0]} failed ({last_line(log)}): its log is {log}.")


def make(folder: Path, names: tuple[str, ...] = (*NEEDED, *PEERS)) -> list[Path]:
    """A wheel of each, as constraints.txt pins it, without what it asks for in turn: the machine has torch, and its own. Only wheels for
    any Python and any machine are of use; others are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    pip("wheel", "--no-deps", "--constraint", str(ROOT / "constraints.txt"), "--wheel-dir", str(folder), *names, log=folder / "pip.log")
    (folder / "pip.log").unlink()
    for wheel in folder.glob("*.whl"):
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
    return sorted(folder.glob("*.whl"))


def importable(folder: Path, site: Path) -> Path:
    """A folder for PYTHONPATH with the packages of these wheels that the machine has not: its own are left as they are.

    Raises UserError for a folder with no wheel in it, and as `pip`."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UserError(f"--wheels {folder} has no *.whl: make them where there is a network (docs/gpu.md).")
    missing = [wheel for wheel in wheels if not installed(wheel.name.split("-")[0])]
    stamp = site / "wheels.txt"
    names = "\n".join(wheel.name for wheel in missing)
    if not stamp.exists() or stamp.read_text() != names:
        site.mkdir(parents=True, exist_ok=True)
        words = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site), *map(str, missing)]
        if missing:
            pip("install", *words, log=site / "pip.log")
        stamp.write_text(names)
    return site


def installed(name: str) -> bool:
    """Whether this Python has a package, be it of another version."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with one_sentence():
        wheels = make(args.folder)
    print(f"{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 2**20:.1f} MiB, in {args.folder}")


if __name__ == "__main__":
    main()
