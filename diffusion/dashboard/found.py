"""What commands found of a run and wrote into its folder, as far as the page shows it: diffusion.diagnose's diagnose.json and
diffusion.pareto's pareto.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion.dashboard.files import SETTINGS, content
from diffusion.support.errors import UserError

SHOWN = ("model/train", "model/heldout", "exact/train", "gaussian")
WORDS = ("question", "answer", "seen", "rule", "reference", "remedy")
NUMBERS = ("calls", "gflop", "ms", "value", "half_width", "images")  # of a way to sample
BANDS, FINDINGS, WAYS, LETTERS = 100, 20, 2000, 2000  # at most, where commands write 10, 6, some dozens and some 300


def diagnosis_of(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """The step, the log-SNR of each band, the mean errors by name, and the findings; empty where there is no such file or, with a warning,
    where it is none."""
    return file_found(folder, "diagnose", diagnosis_found, warnings)


def front_of(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """The number's name, whether more is better, the sentences, and the ways to sample; empty as above."""
    return file_found(folder, "pareto", ways_found, warnings)


def file_found(folder: Path, name: str, of: Callable[[Any], dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """What the page shows of the folder's NAME.json, by `of`, which may raise what a file that is another's raises."""
    try:
        return of(json.loads(content(folder / f"{name}.json", folder, SETTINGS)))
    except FileNotFoundError:
        return {}
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        warnings.append(f"its {name}.json is not shown, because it is not what diffusion.{name} writes")
        return {}


def diagnosis_found(found: Any) -> dict[str, Any]:
    """Of a run's diagnose.json."""
    means = {name: finite_numbers(found["errors"][name]["mean"]) for name in SHOWN if name in found["errors"]}
    log_snr = finite_numbers(found["log_snr"])
    if any(len(mean) != len(log_snr) for mean in means.values()) or type(found["step"]) is not int:
        raise ValueError
    said = [{key: str(one[key])[:LETTERS] for key in WORDS} | {"normal": one["normal"] is True} for one in found["findings"][:FINDINGS]]
    return {"step": min(found["step"], 2**53), "log_snr": log_snr, "errors": means, "findings": said}


def ways_found(found: Any) -> dict[str, Any]:
    """Of a run's pareto.json."""
    points = []
    for one in found["points"][:WAYS]:
        values = finite_numbers([one[key] for key in NUMBERS])
        if None in values:
            raise ValueError
        words = {key: str(one[key])[:LETTERS] for key in ("label", "state")}
        points.append(words | dict(zip(NUMBERS, values, strict=True)))
    if found["unit"] not in NUMBERS:
        raise ValueError
    said = [str(sentence)[:LETTERS] for sentence in found["sentences"][:FINDINGS]]
    return {
        "key": str(found["key"])[:LETTERS],
        "higher": found["higher"] is True,
        "unit": found["unit"],
        "sentences": said,
        "points": points,
    }


def finite_numbers(values: Any) -> list[float | None]:
    """A list of finite numbers and None. Raises ValueError for anything else."""
    if not isinstance(values, list) or len(values) > BANDS:
        raise ValueError
    if not all(value is None or (type(value) in (int, float) and abs(value) < 1e300) for value in values):
        raise ValueError
    return [None if value is None else float(value) for value in values]
