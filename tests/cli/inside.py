"""What sample.py and diffusion.evaluate do, in this process: a command line composed as Hydra would, without a new Python."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import yaml
from composing import ROOT, TINY, composed, composition, typed

from diffusion.config import told
from diffusion.evaluate import measured_cell
from diffusion.schemas import EvaluateSchema, SampleSchema, known
from diffusion.shell import quoted
from diffusion.support.files import writing_in
from diffusion.support.trust import trusting
from diffusion.training.run import train


def trained(folder: Path, *words: str) -> Path:
    """The folder of a tiny run, trained, with its source.yaml as the command writes it."""
    kept = [word for word in TINY if word.partition("=")[0] not in {other.partition("=")[0] for other in words}]
    config = composed(*kept, f"paths.cache={folder.parent / 'cache'}", *words)
    train(config, folder, {"source.yaml": yaml.safe_dump(config, sort_keys=False)})
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampled(run: Path, out: Path | None, *words: str) -> np.lib.npyio.NpzFile:
    """The samples.npz of `python sample.py ckpt=RUN out=OUT WORDS`; of that in the folder by default, the newest of the run's."""
    spec = importlib.util.spec_from_file_location("sample_command", ROOT / "sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = (f"ckpt={run}", f"out={out or 'null'}", "device=cpu", *words)
    cfg = composition(*map(quoted, words), name="sample")
    known(cfg, SampleSchema)
    with trusting(cfg.trust), writing_in(told(cfg, typed(*words))):
        module.sample(cfg, typed(*words))
    folders = [path.parent for path in (run / "samples").glob("*/samples.npz")]
    return np.load((out or max(folders, key=lambda folder: folder.stat().st_mtime_ns)) / "samples.npz")


def measured(run: Path, out: Path, *words: str) -> dict:
    """The last line of `python -m diffusion.evaluate ckpt=RUN out=OUT WORDS`."""
    words = (f"ckpt={run}", f"out={out}", "device=cpu", *words)
    cfg = composition(*words, name="evaluate")
    known(cfg, EvaluateSchema)
    with trusting(cfg.trust), writing_in(told(cfg, typed(*words))):
        measured_cell(cfg, typed(*words))
    return lines(out)[-1]


def measured_images(out: Path, *words: str) -> dict:
    """The last line of `python -m diffusion.evaluate images=... out=OUT WORDS`; what it wrote, of statistics."""
    words = (f"out={out}", "device=cpu", *map(str, words))
    cfg = composition(*words, name="evaluate")
    known(cfg, EvaluateSchema)
    with trusting(cfg.trust), writing_in(told(cfg, typed(*words))):
        measured_cell(cfg, typed(*words))
    return dict(np.load(out)) if out.suffix == ".npz" else lines(out)[-1]
