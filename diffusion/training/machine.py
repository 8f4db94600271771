"""What a run asks of the machine that it is on: device, precision, determinism. What cannot be is refused at the start."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from diffusion.support.devices import AUTO, accelerator, fastest
from diffusion.support.errors import UserError

log = logging.getLogger(__name__)
TRAINED_IN = ("32-true", "bf16-mixed", "16-mixed")
LAUNCHERS = (
    ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("SLURM_STEP_NUM_NODES", "SLURM_NTASKS_PER_NODE"),
)  # torchrun's, also inside SLURM; srun's
FOLLOWS = {"max_steps": "steps", "accumulate_grad_batches": "accumulate", "precision": "precision", "deterministic": "deterministic"}


def trainer_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings, with the device that `auto` stands for. A deterministic run does not let cuDNN choose the fastest kernels,
    which may be others the next time.

    Raises UserError for a setting that contradicts the plain key that it follows from, for 16-mixed on a CPU, for Apple's GPU, for one
    device where torchrun has started several processes, and as `machines` and `processes`."""
    settings = dict(config["trainer"])
    if settings.get("num_nodes") == "auto":
        settings |= machines()
    for key, plain in FOLLOWS.items():
        if key in settings and plain in config and settings[key] != config[plain]:  # an older run may not have one of them
            said, follows = settings[key], f"{plain}={config[plain]}"
            raise UserError(f"trainer.{key}={said} contradicts {follows}, which it follows; say {plain}={said}.")
    settings["accelerator"] = accelerator(settings["accelerator"])
    if settings["accelerator"] == "cpu":
        settings["devices"] = processes(settings["devices"])
    begun = int(os.environ["WORLD_SIZE"]) if "GROUP_WORLD_SIZE" in os.environ else 1
    if begun > 1 and settings["devices"] == settings["num_nodes"] == 1:  # each would train alone, in one folder
        raise UserError(f"torchrun has started {begun} processes, and trainer.devices=1 is one: say trainer=ddp, or trainer=multinode.")
    settings["benchmark"] = settings["benchmark"] and not settings["deterministic"]
    if (settings["accelerator"], settings["precision"]) == ("cpu", "16-mixed"):
        raise UserError("precision=16-mixed trains on a GPU; on the CPU say precision=bf16-mixed or 32-true.")
    return settings


def machines() -> dict[str, int]:
    """The settings of the trainer for all machines that `launched` tells of.

    Raises UserError where nobody does, and as that."""
    if (said := launched()) is None:
        raise UserError(
            "trainer.num_nodes=auto means the machines on which torchrun or srun has started this, and neither has: say trainer=ddp for "
            "the devices of this one, or see docs/clusters.md."
        )
    return said


def processes(devices: int | str | Sequence[int]) -> int | str:
    """`devices` of a CPU, on which any number of processes may train: -1, all there are, are those that torchrun or srun has started.

    Raises UserError where neither has, for what is no number of processes, and as `launched`."""
    if str(devices) == "-1":
        if (said := launched()) is None:
            raise UserError(
                "trainer.devices=-1 means all GPUs, and this trains on the CPU: say trainer.devices=N for N processes, or start them by "
                "torchrun --standalone --nproc_per_node=N."
            )
        return said["devices"]
    if isinstance(devices, int | str) and (devices == "auto" or (str(devices).isdecimal() and int(devices) > 0)):
        return devices
    raise UserError(f"trainer.devices={devices} is no number of processes on a CPU: say trainer.devices=1, or more.")


def launched() -> dict[str, int] | None:
    """The settings of the trainer that torchrun or srun, which started this process and the others, has settled: how many machines, and
    processes on each; None where neither did. A script of sbatch without srun has only what is the job's.

    Raises UserError where SLURM was told only how many there are in all."""
    for nodes, each in LAUNCHERS:
        if nodes in os.environ:
            if each not in os.environ:
                raise UserError("SLURM does not say how many processes there are on each machine: say #SBATCH --ntasks-per-node=N.")
            return {"num_nodes": int(os.environ[nodes]), "devices": int(os.environ[each])}
    return None


def precise(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the precision that `auto` stands for on its device. Raises UserError for one that is not trained in."""
    if config["precision"] not in (AUTO, *TRAINED_IN):
        raise UserError(f"precision={config['precision']} is not one that is trained in: say {', '.join(TRAINED_IN)} or auto.")
    if config["precision"] != AUTO:
        return dict(config)
    word = fastest(accelerator(config["trainer"].get("accelerator", AUTO)))
    log.info("precision=auto: %s", word)
    trainer = dict(config["trainer"])
    if trainer.get("precision", AUTO) == AUTO:  # another contradicts it, and is refused as such
        trainer["precision"] = word
    return {**config, "precision": word, "trainer": trainer}


class Unscale(Callback):
    """Under 16-mixed, gradients lose the loss's scale before the module measures and clips them. Lightning leaves it to the step of an
    optimizer that can, as a fused one does, and that is too late."""

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Lightning's hook, before the module's own."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
