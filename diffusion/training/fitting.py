"""What of an experiment goes with its schedule. All that does not is said at once, with the words that would do."""

from collections.abc import Callable, Mapping
from inspect import isclass, isfunction
from typing import Any

import torch

from diffusion.data import Dataset
from diffusion.metrics import Metric
from diffusion.objectives import Objective, Simple, in_steps
from diffusion.parameterization import Parameterization
from diffusion.samplers.base import Sampler
from diffusion.schedules import Schedule
from diffusion.support.build import asks_for, build, locate
from diffusion.support.errors import UserError
from diffusion.times import Times
from diffusion.training.ema import EMA
from diffusion.typing import Codec, Conditions

# What the classes of a group are called with.
CONTRACTS: dict[str, Any] = {
    "codec": Codec,
    "conditions": Conditions,
    "dataset": Dataset,
    "ema": EMA,
    "grid": Callable,
    "guidance": Callable,
    "lr_schedule": Callable,
    "metric": Metric,
    "objective": Objective,
    "parameterization": Parameterization,
    "sampler": Sampler,
    "schedule": Schedule,
    "times": Times,
}


def require_methods(config: Mapping[str, Any]) -> None:
    """Raises UserError for a class of a configuration without a method that its group's classes have."""
    for group, contract in CONTRACTS.items():
        stages = {group: config[group]} if "_target_" in config[group] else {f"{group}.{k}": v for k, v in config[group].items()}
        for key, node in stages.items():
            made = locate(node["_target_"]) if isinstance(node, Mapping) and node.get("_target_", "???") != "???" else None
            if isclass(made) and (missing := [name for name in methods(contract) if not any(name in vars(base) for base in made.__mro__)]):
                raise UserError(f"{key}._target_={node['_target_']} has no {' and no '.join(missing)}, as {contract.__name__} says.")


def methods(contract: Any) -> list[str]:
    """The names of the methods of a Protocol or a base class."""
    bases = [base for base in contract.__mro__ if base.__module__.startswith(("diffusion", "collections"))]
    own = [item for base in bases for item in vars(base).items()]
    return sorted({name for name, value in own if isfunction(value) and (name == "__call__" or not name.startswith("_"))})


def require_fit(config: Mapping[str, Any]) -> None:
    """Raises UserError if the schedule of a configuration does not go with its parameterization, objective or times."""
    with torch.random.fork_rng(devices=[]):
        schedule, objective = (build(config[group], group) for group in ("schedule", "objective"))
    read = build(config["parameterization"], "parameterization") if asks_for(config["task"], "parameterization") else None
    times = config["times"]["_target_"]
    if found := misfits(schedule, read, objective, locate(times) if times != "???" else Times):
        raise UserError(f"The schedule {type(schedule).__name__} does not go with {', nor with '.join(found)}.")


def misfits(schedule: Schedule, read: Parameterization | None, objective: Objective, times: Any) -> list[str]:
    """What does not go with the schedule, each with the reason and a remedy. `times` is an object or its class; `read` is None for a task
    that has no parameterization."""
    continuous, found = schedule.num_timesteps is None, []
    if read is not None and read.needs_signal and schedule.reaches_noise:
        found.append(
            f"parameterization {type(read).__name__}, since alpha is 0 at t = 1, where its output says nothing of x_0 "
            "(say parameterization=v, velocity, x0 or edm)"
        )
    if continuous and in_steps(objective):
        found.append(
            f"objective {type(objective).__name__}, a sum over time steps, of which continuous time has none (say objective=simple)"
        )
    if continuous and getattr(times, "needs_steps", False):
        found.append("times=importance, which learns how often to draw each time step (say times=uniform, or schedule=cosine)")
    if continuous and read is not None and getattr(times, "even", False) and endless(schedule, read, objective):
        found.append(
            f"objective {type(objective).__name__} of parameterization {type(read).__name__}, whose loss has no finite mean over "
            "continuous time: it grows as 1/t towards t = 0 (say objective=min_snr parameterization=v, or schedule=cosine)"
        )
    return found


def endless(schedule: Schedule, read: Parameterization, objective: Objective) -> bool:
    """Whether the mean over uniform t of an untrained network's loss is infinite: whether the loss grows as 1/t, or faster, towards 0."""
    if not isinstance(objective, Simple) or objective.needs_steps:
        return False
    later, earlier = objective.untrained(schedule, read, torch.tensor([1e-6, 1e-9], dtype=torch.float64)).tolist()
    return earlier > 100 * later  # 1/t grows a thousandfold
