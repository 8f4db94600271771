"""A training that begins from the weights of another run: fine-tuning and transfer."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffusion.checkpoint import load
from diffusion.support.errors import UserError

NAMED = 5  # parameters that are named; the others are counted
log = logging.getLogger(__name__)


def begin_from(module: nn.Module, config: Mapping[str, Any], trust: Sequence[str] = ()) -> dict[str, Any]:
    """Give `module` the parameters of the run config["init"]["ckpt"], averaged or the last ones, that it has too, of the same name and
    shape; the log says which it has not. The schedule's tables and other buffers stay its own. Returns config["init"] with the hash of the
    weights of that run. A warning says if that run has seen items that are held out now.

    Raises UserError where no parameter fits, where another process has read other weights, and as `diffusion.checkpoint.load` does."""
    init = config["init"]
    source = load(init["ckpt"], init["averaged"], kind=nn.Module, trust=trust)
    if init.get("weights") not in (None, source.weights):
        raise UserError(f"init.ckpt={init['ckpt']} has changed since this run read it: begin again when that run has ended.")
    theirs_of, ours_of = ({k: v for k, v in c.get("dataset", {}).items() if k != "cache"} for c in (source.config, config))
    if theirs_of.pop("holdout", 0.0) < ours_of.pop("holdout", 0.0) and theirs_of == ours_of:
        log.warning("The run %s was trained on items that are held out now: their loss says nothing of unseen items.", init["ckpt"])
    theirs, ours = dict(source.denoiser.named_parameters()), dict(module.named_parameters())
    fitting = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    if not fitting:
        raise UserError(f"Nothing of init.ckpt={init['ckpt']} fits this network: it has other parameters, or of other shapes.")
    with torch.no_grad():
        for name in fitting:
            ours[name].copy_(theirs[name])
    if (other := getattr(getattr(source.denoiser, "network", None), "details", None)) != getattr(
        getattr(module, "network", None), "details", None
    ):
        log.warning("The network of %s computes otherwise where weights fit: it has %s; say so by network.details.", init["ckpt"], other)
    was, now = (str(c.get("parameterization", {}).get("_target_", "")).rpartition(".")[2] for c in (source.config, config))
    if was and was != now:
        log.warning("The output of %s means %s, and here %s: it is learned anew, on what the inner layers know.", init["ckpt"], was, now)
    share = sum(ours[name].numel() for name in fitting) / sum(parameter.numel() for parameter in ours.values())
    log.info("%d of %d parameters (%.1f %% of the weights) begin as in %s", len(fitting), len(ours), 100 * share, init["ckpt"])
    others = [name for name in ours if name in theirs and name not in fitting]
    said = {
        "of another shape": [f"{name} {list(ours[name].shape)}, there {list(theirs[name].shape)}" for name in others],
        "not there": [name for name in ours if name not in theirs],
        "only there": [name for name in theirs if name not in ours],
    }
    for what, names in said.items():
        if names:
            log.info("%s: %s%s", what, "; ".join(names[:NAMED]), f"; and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return {**init, "weights": source.weights}
