"""The diagnosis of a run: its losses and what they say, measured, and written as text, a plot and data."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.checkpoint import load, read
from diffusion.data import Dataset, ImageSet, flip, held_out
from diffusion.data.stream import permutation
from diffusion.denoiser import Denoiser
from diffusion.evaluation.findings import Evidence, Finding, findings
from diffusion.evaluation.losses import Bands, Items, encoded, measured_bands
from diffusion.evaluation.noise_scale import NoiseScale, noise_scale
from diffusion.evaluation.tables import COLOURS, GREY, number
from diffusion.model import Model
from diffusion.passport import finite
from diffusion.support.build import build
from diffusion.support.commands import as_text
from diffusion.support.errors import UserError
from diffusion.support.files import atomic
from diffusion.support.trust import vet

CHOSEN = 0xD1A6  # the seed of which items are measured
OTHERS = ("test", "valid", "val")  # splits that training does not see, by the names that data sets give them
SMALL = 64  # items, at most, of the batches whose gradients are compared, so that they fit where a step is shared out among devices
STEPS, BATCHES = 16, 256  # how many steps' items they have in all, if these are not too many batches
SHOWN = (0.03, 30)  # times the Gaussian's, in the plot
COLUMNS = {  # what is shown, in order
    "model/train": "model, training",
    "model/heldout": "model, held out",
    "exact/train": "exact denoiser, training",
    "exact/heldout": "exact denoiser, held out",
    "gaussian": "Gaussian",
    "last/train": "last weights, training",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a run and what it says; `about` says of what, as plain data."""

    about: Mapping[str, Any]
    bands: Bands
    findings: list[Finding]


class Data(NamedTuple):
    """The data of a run: its training set, the numbers of the items that training sees, and what it does not see: an image set, the
    numbers in it, and which they are in words; None for nothing."""

    train: ImageSet
    seen: Tensor
    heldout: tuple[ImageSet, Tensor, str] | None


def data_of(dataset: Dataset) -> Data:
    """The data. Held out is the share that `dataset.holdout` keeps from training, or else the data set's other split, without the items
    that are in the training set too."""
    train = dataset.load()
    seen, held = held_out(len(train), dataset.holdout)
    if len(held):
        return Data(train, seen, (train, held, f"the {len(held):,} items of dataset.holdout={dataset.holdout}"))
    known = {train.images[i].tobytes() for i in range(len(train))}
    for split in (name for name in OTHERS if name in dataset.splits and name != dataset.split):
        try:
            other = replace(dataset, split=split).load()
        except UserError as error:
            log.warning("Split %s is not measured: %s Here, --cache names that folder.", split, error)
            continue
        apart = torch.tensor([i for i in range(len(other)) if other.images[i].tobytes() not in known], dtype=torch.long)
        if len(apart):
            return Data(train, seen, (other, apart, f"{len(apart):,} items of split {split}"))
    return Data(train, seen, None)


def some_of(numbers: Tensor, n: int) -> Tensor:
    """n of these numbers, or all if there are fewer, the same each time."""
    return numbers[permutation(len(numbers), CHOSEN, 0)[:n]]


def diagnosed(run: str | Path, n: int, device: torch.device, share_before: Callable[[Model], float | None]) -> Diagnosis:
    """The diagnosis of a run by n training images and as many held-out ones. `share_before(model)` is how much of the averaged weights is
    from the first half of training, None without an average.

    Raises UserError for what is no run of a denoiser with a data set, and for weights that are not finite."""
    model, last = load(run, kind=Denoiser).to(device), load(run, averaged=False, kind=Denoiser).to(device)
    if model.folder is None or model.path is None:
        raise UserError(f"{run} is not a run, and says nothing of its data and its training: give a folder such as runs/NAME.")
    if not all(weight.isfinite().all() for of in (model, last) for weight in of.denoiser.parameters()):
        raise UserError(f"The weights of {model.path} are not finite: the training diverged; give a checkpoint from before that.")
    dataset = build(model.config["dataset"], "dataset")
    data = data_of(dataset)
    train, heldout, known = items_of(model, data, n, dataset.flip, device)
    old = share_before(model)
    bands = measured_bands(model.denoiser, None if old is None else last.denoiser, train, heldout, known, model.config["sample_batch_size"])
    noise = gradient_noise(last, data, dataset.flip, device)
    evidence = Evidence(bands, model.config["batch_size"] * model.config["accumulate"], old, noise)
    about = model.describe() | {
        "training": f"{len(train.x0):,} of the {len(data.seen):,} items that training sees{', and their mirror images' * dataset.flip}",
        "heldout": f"{len(heldout.x0):,} of {heldout.words}" if heldout else "none: train with dataset.holdout=0.1 to have some",
    }
    return Diagnosis(about, bands, findings(evidence))


def items_of(model: Model, data: Data, n: int, mirror: bool, device: torch.device) -> tuple[Items, Items | None, Items]:
    """(n training items, n held-out ones or None, all that training sees)."""

    kinds: dict[bytes, int] = {}
    train = encoded(model, data.train, some_of(data.seen, n), device, kinds)
    heldout = data.heldout and encoded(model, data.heldout[0], some_of(data.heldout[1], n), device, kinds, data.heldout[2])
    return train, heldout, encoded(model, data.train, data.seen, device, kinds, mirror=mirror)


def gradient_noise(model: Model, data: Data, mirror: bool, device: torch.device) -> NoiseScale:
    """The noise scale of a run's loss at its last weights, as its training draws items, mirror images, dropped conditions, t and noise."""
    config, (_, checkpoint), denoiser = model.config, read(model.path or ""), model.denoiser
    vet({key: config.get(key) for key in ("objective", "times")}, where=f"config.yaml of {model.path}")
    objective = restored(build(config["objective"], "objective", {"span": model.codec.range}), "objective", checkpoint, device)
    steps = {"num_timesteps": denoiser.schedule.num_timesteps}
    times = restored(build(config.get("times"), "times", steps), "times", checkpoint, device)
    if not callable(times) or not hasattr(times, "observe"):
        raise UserError(f"The config.yaml of {model.path} does not say what times is: it is damaged, or not of a training.")
    labels, batch_size = model.conditions.labels(data.train), min(SMALL, config["batch_size"])
    batches = min(BATCHES, STEPS * config["batch_size"] * config["accumulate"] // batch_size)

    def loss(i: int) -> Tensor:
        torch.manual_seed(i)
        numbers = data.seen[torch.randint(len(data.seen), (batch_size,))]
        images = torch.from_numpy(data.train.images[numbers.numpy()]).to(device)
        x0 = model.codec.encode(flip(images) if mirror else images, torch.randn_like)
        cond = None if labels is None else model.conditions.of(labels[numbers].to(device))
        if cond is not None:
            kept = torch.rand(batch_size, device=device) >= config.get("p_uncond", 0.0)
            cond = torch.where(kept.reshape(-1, *[1] * (cond.ndim - 1)), cond, model.conditions.null(cond))
        t, weight = times(batch_size, denoiser.schedule, device)
        eps, *others = [torch.randn_like(x0) for _ in range(1 + getattr(objective, "noises", 0))]
        return (weight * objective(denoiser, x0, t, eps, cond, *others)["loss"]).mean()

    denoiser.train().requires_grad_(True)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            return noise_scale(denoiser, loss, batches, batch_size)
    finally:
        denoiser.eval().requires_grad_(False)


def restored(part: Any, name: str, checkpoint: Mapping[str, Any], device: torch.device) -> Any:
    """An objective or times, with what it has learned, if it learns."""
    if isinstance(part, nn.Module):
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
        part.load_state_dict(state)
        part.to(device).requires_grad_(False)
    return part


def rows_of_bands(bands: Bands) -> list[list[str]]:
    """The bands as rows of text, a head first: an error of eps and twice its standard error."""
    shown = [name for name in COLUMNS if name in bands.errors or (name == "gaussian" and bands.gaussian is not None)]
    rows = [["log-SNR", "t", *(COLUMNS[name] for name in shown)]]
    for k, (t, log_snr) in enumerate(zip(bands.t.tolist(), bands.log_snr.tolist(), strict=True)):
        rows.append([f"{log_snr:.1f}", f"{t:.3f}", *(cell(bands, name, k) for name in shown)])
    return rows


def cell(bands: Bands, name: str, k: int) -> str:
    """One error of the table."""
    if name == "gaussian":
        return "" if bands.gaussian is None else number(bands.gaussian[k].item())
    mean = bands.mean(name)[k].item()
    return f"{number(mean)} ± {number(2 * bands.error(name)[k].item())}" if mean == mean else "none has its condition"


def lines_of_text(diagnosis: Diagnosis) -> str:
    """The table and the findings, to be printed."""
    rows = rows_of_bands(diagnosis.bands)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n\n".join([what_is_shown(diagnosis), table, *map(str, diagnosis.findings)])


def what_is_shown(diagnosis: Diagnosis) -> str:
    """Of what the errors are."""
    about = diagnosis.about
    return (
        f"{about['run']}, step {about['step']:,}: mean squared error of eps, ± two standard errors, from clean data to noise.\n"
        f"Training: {about['training']}. Held out: {about['heldout']}."
    )


def markdown_of(diagnosis: Diagnosis, command: str) -> str:
    """The same as Markdown."""
    head, *rows = (f"| {' | '.join(row)} |" for row in rows_of_bands(diagnosis.bands))
    table = "\n".join([head, "|" + " --- |" * head.count(" | ") + " --- |", *rows])
    said = [
        f"**{one.question} {one.answer.capitalize()}**: {one.seen}\n\n* rule: {one.rule} ({one.reference})"
        + ("" if one.normal else f"\n* what to do: {one.remedy}")
        for one in diagnosis.findings
    ]
    return "\n\n".join([f"```\n{command}\n```", what_is_shown(diagnosis), table, *said]) + "\n"


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """The same as plain data: `diagnose.json`."""
    bands = diagnosis.bands
    columns = {name: {"mean": bands.mean(name).tolist(), "error": bands.error(name).tolist()} for name in bands.errors}
    gaussian = {} if bands.gaussian is None else {"gaussian": {"mean": bands.gaussian.tolist()}}
    return {
        **diagnosis.about,
        "log_snr": bands.log_snr.tolist(),
        "t": bands.t.tolist(),
        "errors": columns | gaussian,
        "findings": [asdict(one) for one in diagnosis.findings],
    }


def save_diagnosis(diagnosis: Diagnosis, folder: Path, command: str) -> None:
    """Write diagnose.md, .json and .png into a folder. Without Matplotlib there is no plot."""
    written = {".json": json.dumps(finite(as_data(diagnosis)), indent=1), ".md": markdown_of(diagnosis, command)}
    for suffix, text in written.items():
        with atomic(folder / f"diagnose{suffix}") as temporary:
            temporary.write_text(text)
    try:
        draw_bands(diagnosis.bands, folder / "diagnose.png")
    except ModuleNotFoundError as error:
        log.warning("No plot: %s; `pip install -e .[metrics]` brings it.", error)


def draw_bands(bands: Bands, path: Path) -> None:
    """Each error against log-SNR, relative to the Gaussian's where it is known: what lies below 1 knows more than the covariance. What is
    far outside, as a memory's error of nothing, is cut off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=90, layout="constrained")
    axes = figure.subplots()
    unit = torch.ones_like(bands.t) if bands.gaussian is None else bands.gaussian
    for name, colour in zip([name for name in COLUMNS if name in bands.errors and not name.startswith("last/")], COLOURS, strict=False):
        mean, error = bands.mean(name) / unit, 2 * bands.error(name) / unit
        look = "o-" if name.endswith("train") else "o--"
        axes.errorbar(bands.log_snr, mean, yerr=error, fmt=look, color=colour, markersize=3.5, capsize=2, label=COLUMNS[name])
    if bands.gaussian is not None:
        axes.axhline(1, color=GREY, label=COLUMNS["gaussian"])
    axes.set(
        yscale="log", xlabel="log-SNR, from clean data to noise", ylabel="error of eps" + " / the Gaussian's" * (bands.gaussian is not None)
    )
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, SHOWN[0]), min(high, SHOWN[1]))
    axes.invert_xaxis()
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata=as_text(file=path.name))
