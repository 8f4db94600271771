"""Experiments made small: as they are, but for their data, their network's width and their length."""

from pathlib import Path
from typing import Any

from composing import composed

SMALL = ["steps=2", "batch_size=4", "log_every=1", "eval_every=2", "checkpoint_every=2", "grid.steps=2", "callbacks.samples.columns=1"]


def shrunk(choice: str, cache: Path, *words: str) -> dict[str, Any]:
    """The configuration of two steps of `experiment=CHOICE`."""
    config = composed(f"experiment={choice}", *SMALL, "metric=none", "compile=off", *words)
    shape = {k: config["dataset"][k] for k in ("image_size", "channels", "num_classes", "flip")}
    shape["num_classes"] = 10 if shape["num_classes"] is None else shape["num_classes"]  # null: as many as a folder has
    config["dataset"] = {"_target_": "diffusion.data.Synthetic", "root": "", "cache": str(cache), "n": 16, **shape}
    for other in config["samplers"].values():
        other.get("grid", {}).pop("steps", None)
    network = config["network"]
    if "channels" in network:
        network.update(channels=32, res_blocks=1, **{key: 32 for key in ("head_channels",) if key in network})
    return config
