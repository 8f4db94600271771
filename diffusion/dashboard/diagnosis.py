"""A run's diagnose.json, which `python -m diffusion.diagnose` wrote, as far as the page shows it."""

import json
from pathlib import Path
from typing import Any

from diffusion.dashboard.files import SETTINGS, content
from diffusion.support.errors import UserError

SHOWN = ("model/train", "model/heldout", "exact/train", "gaussian")
WORDS = ("question", "answer", "seen", "rule", "reference", "remedy")
BANDS, FINDINGS, LETTERS = 100, 20, 2000  # at most, where a run writes 10, 6 and some 300


def diagnosis_of(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """The step, the log-SNR of each band, the mean errors by name, and the findings; empty where there is no such file or, with a warning,
    where it is none."""
    try:
        found = json.loads(content(folder / "diagnose.json", folder, SETTINGS))
        means = {name: numbers_of_bands(found["errors"][name]["mean"]) for name in SHOWN if name in found["errors"]}
        log_snr = numbers_of_bands(found["log_snr"])
        if any(len(mean) != len(log_snr) for mean in means.values()) or type(found["step"]) is not int:
            raise ValueError
        said = [{key: str(one[key])[:LETTERS] for key in WORDS} | {"normal": one["normal"] is True} for one in found["findings"][:FINDINGS]]
        return {"step": min(found["step"], 2**53), "log_snr": log_snr, "errors": means, "findings": said}
    except FileNotFoundError:
        return {}
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        warnings.append("its diagnose.json is not shown, because it is not what diffusion.diagnose writes")
        return {}


def numbers_of_bands(values: Any) -> list[float | None]:
    """A list of finite numbers and None. Raises ValueError for anything else."""
    if (
        not isinstance(values, list)
        or len(values) > BANDS
        or not all(v is None or (type(v) in (int, float) and abs(v) < 1e300) for v in values)
    ):
        raise ValueError
    return [None if value is None else float(value) for value in values]
