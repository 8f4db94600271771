"""compile=WORD: how much of a training step torch.compile turns into kernels of its own.

What is compiled is kept on disk by torch (TORCHINDUCTOR_CACHE_DIR), so that the next run begins sooner. A swap of the weights for their
average, dropped conditions and a learning rate that changes compile nothing anew; the first images do, since they are made without
gradients and in other batches.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from diffusion.support.errors import UserError
from diffusion.training.base import TrainingModule
from diffusion.training.sharding import WORD as SHARDED

log = logging.getLogger(__name__)
PAYS, MINUTES = 5000, 10  # steps and minutes from which one or two of compiling are taken to be won back on a GPU; none has said so yet
VARIANTS = 128  # of one block's code: as many as a network has widths and sizes, with and without gradients


def compile_blocks(module: TrainingModule, **settings: Any) -> None:
    """Compile each element of the network's outermost ModuleLists by itself: blocks of one shape share what is compiled, so that it takes
    a fraction of the whole network's time. Raises UserError for a network without such lists."""
    found = blocks(module.denoiser.network)
    if not found:
        raise UserError(f"compile=blocks finds no blocks in {type(module.denoiser.network).__name__}: say compile=network.")
    for block in found:
        block.compile(**settings)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The elements of a network's outermost ModuleLists."""
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    within = {child for part in lists for child in part.modules() if child is not part}
    return [child for part in lists if part not in within for child in part]


def compile_network(module: TrainingModule, **settings: Any) -> None:
    """Compile the network as one. Raises UserError for an autoencoder, whose two halves are called by themselves."""
    if hasattr(module.denoiser.network, "moments"):
        raise UserError(f"compile=network does not go with {type(module.denoiser.network).__name__}: say compile=blocks.")
    module.denoiser.network.compile(**settings)


def compile_step(module: TrainingModule, **settings: Any) -> None:
    """Compile the objective with all that it calls: x_t, the network, the loss. Raises UserError for a training that has no such step."""
    if module.computed is None:
        raise UserError(f"compile=step does not go with {type(module).__name__}: say compile=blocks.")
    warnings.filterwarnings("ignore", ".*lru_cache", module="torch._dynamo")  # what is kept of a schedule is found anew, and the same
    module.computed = torch.compile(module.computed, **settings)


WAYS: dict[str, Callable[..., None]] = {"blocks": compile_blocks, "network": compile_network, "step": compile_step}


def chosen(config: Mapping[str, Any], module: TrainingModule, accelerator: str) -> str:
    """What compile=auto stands for: blocks on a GPU, where the run is long enough to win back what it takes, else off; off too where it
    cannot be, and for a deterministic run, whose numbers are not to depend on how long it is.

    Raises UserError if another word is said where it cannot be."""
    word, why = config["compile"], impossible(config, module)
    if word not in ("auto", "off") and why:
        raise UserError(f"compile={word} does not go with {why}; say compile=off.")
    if word != "auto":
        return word
    long = config["steps"] >= PAYS and (config.get("minutes") or MINUTES) >= MINUTES
    pays = accelerator in ("cuda", "gpu") and long and not config["deterministic"] and not why and blocks(module.denoiser.network)
    return "blocks" if pays else "off"


def impossible(config: Mapping[str, Any], module: TrainingModule) -> str:
    """What of a run forbids compiling; empty where nothing does."""
    if getattr(module.objective, "derives_twice", False):
        return f"objective {type(module.objective).__name__}, which differentiates the network twice"
    return "trainer=fsdp" if config["trainer"].get("strategy") == SHARDED else ""


def compiled(config: Mapping[str, Any], module: TrainingModule, accelerator: str, **settings: Any) -> None:
    """Compile what the configuration says, at its first call. `settings` are torch.compile's. Raises UserError as `chosen` does."""
    word = chosen(config, module, accelerator)
    if word == "off":
        return
    if config["compile"] == "auto":
        log.info("compile=auto: %s", word)
    allow_variants()
    WAYS[word](module, **settings)


def allow_variants() -> None:
    """From now on torch compiles as many variants of one code as a network has."""
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
