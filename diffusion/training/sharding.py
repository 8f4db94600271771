"""Weights, gradients, the optimizer's state and averages of the weights in parts, one on each device: FSDP2 (Zhao et al. 2023, 2304.11277).

A block's weights are gathered when it is called, and given back after it, so that a device never holds all of them, but in an evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from diffusion.checkpoint import read_checkpoint, write_together
from diffusion.shards import Parts, mapped, shard_of
from diffusion.support.errors import UserError

WORD = "sharded"  # trainer.strategy of trainer=fsdp


class Sharded(ModelParallelStrategy):
    """FSDP2 over all devices, in float32 or under autocast as `precision` says. Checkpoints are in parts (`diffusion.shards`); those of any
    number of processes, and of other strategies, are read."""

    def __init__(self) -> None:
        super().__init__()

    def setup_environment(self) -> None:
        """One dimension of the mesh of devices."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, module: nn.Module) -> None:
        """Give each device its rows of the module's weights; what is gathered together is an element of a ModuleList, else the rest."""
        mesh = self.device_mesh["data_parallel"]
        for group in [child for part in module.modules() if isinstance(part, nn.ModuleList) for child in part][::-1]:
            if any(True for _ in group.parameters()):
                fully_shard(group, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This device's part."""
        return ParallelStrategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This device's part."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Each process writes its part, as `write_together`, whose `keep` are the storage options."""
        write_together(mapped(checkpoint, lambda _, leaf: shard_of(leaf)), Path(filepath), keep=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The content; of what is sharded here, this device's rows, and nothing else of it is read."""
        content, module = read_checkpoint(Path(checkpoint_path), whole=False), self.lightning_module
        assert module is not None
        own = module.state_dict()
        content["state_dict"] = {name: rows_of(own.get(name), value) for name, value in content["state_dict"].items()}
        weights = {name.removeprefix("denoiser."): value for name, value in own.items()}
        for average in (content["ema"], *content["ema"].get("averages", [])):
            average["shadow"] = {name: rows_of(weights.get(name), value) for name, value in average["shadow"].items()}
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            for group, said in zip(optimizer.param_groups, state["param_groups"], strict=True):
                for weight, number in zip(group["params"], said["params"], strict=True):
                    moments = state["state"].get(number, {})
                    moments.update({key: rows_of(weight, value) for key, value in moments.items()})
        loaded: dict[str, Any] = mapped(content, lambda _, leaf: in_memory(leaf))
        return loaded

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """What `load_checkpoint` has read."""
        ParallelStrategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """What `load_checkpoint` has read."""
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning calls `load_optimizer_state_dict`."""
        return True


StrategyRegistry.register(WORD, Sharded)  # trainer.strategy is a word, so that a run is resumed with another
StrategyRegistry.register("ddp", DDPStrategy, override=True, gradient_as_bucket_view=True)  # gradients are sent from where they are


def require_shardable(config: Mapping[str, Any], module: LightningModule) -> None:
    """Raises UserError for what cannot be trained in parts, where trainer=fsdp is what the configuration says."""
    if config["trainer"].get("strategy") != WORD:
        return
    objective, name = module.objective, type(module.objective).__name__
    reasons = {
        "precision=16-mixed, whose scale follows the gradients of all devices: say precision=bf16-mixed": config["precision"] == "16-mixed",
        "an autoencoder, whose encoder and decoder are called by themselves": hasattr(cast(Any, module.denoiser).network, "moments"),
        f"objective {name}, which differentiates the network twice": getattr(objective, "derives_twice", False),
        f"objective {name}, which has weights of its own": any(True for _ in getattr(objective, "parameters", tuple)()),
    }
    if found := [reason for reason, true in reasons.items() if true]:
        raise UserError(f"trainer=fsdp does not go with {', nor with '.join(found)}; say trainer=ddp.")


def divided(module: LightningModule) -> bool:
    """Make the weights of a training's module this device's part of them, if its strategy is to. Says whether it was."""
    strategy, denoiser = module.trainer.strategy, cast(Any, module.denoiser)
    if not isinstance(strategy, Sharded):
        return False
    strategy.shard(denoiser.network)
    return True


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within the context a sharded module has all its weights on each device, gathered once, so that each calls it as often as it likes;
    it is that much memory. What it changes of the weights is lost."""
    groups = [group for group in module.modules() if isinstance(group, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.set_reshard_after_backward(False, recurse=False)
        group.set_requires_gradient_sync(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            group.set_reshard_after_forward(group is not groups[0], recurse=False)
            group.set_reshard_after_backward(True, recurse=False)
            group.set_requires_gradient_sync(True, recurse=False)
        forget_order(groups)


def forget_order(groups: Sequence[FSDPModule]) -> None:
    """torch notes the order of all calls until the next backward, an evaluation's too, which may be millions; no call needs it."""
    for group in groups:
        for part in getattr(group._get_fsdp_state(), "_fsdp_param_groups", ()):
            part._post_forward_indices.clear()
            part.comm_ctx.post_forward_order.clear()


def rows_of(weight: Tensor | None, value: Any) -> Any:
    """This device's rows of a value of a checkpoint, divided as `weight` is, if that is sharded and of the same shape."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor | Parts) or tuple(value.shape) != tuple(weight.shape):
        return value
    rank, each = weight.device_mesh.get_local_rank(), -(-weight.shape[0] // weight.device_mesh.size())
    rows = value[min(rank * each, len(weight)) : min((rank + 1) * each, len(weight))].to(weight.device, copy=True)
    return DTensor.from_local(rows, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride())


def in_memory(leaf: Any) -> Any:
    """A tensor of a checkpoint in memory, and no longer in its file; anything else as it is."""
    if isinstance(leaf, Parts):
        return leaf[:]
    return leaf.clone() if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor) else leaf
