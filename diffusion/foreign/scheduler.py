"""diffusers' scheduler_config.json in our words: the schedule, the meaning of the network's output, and the folder's own way to sample."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.foreign.files import imported, read_json, required
from diffusion.grids import Leading, Linspace
from diffusion.schedules import Schedule
from diffusion.schedules.discrete import Betas
from diffusion.support.errors import UserError
from diffusion.support.ranges import Probability

FILE = "scheduler_config.json"
SCHEDULES = {"linear": "Linear", "scaled_linear": "ScaledLinear", "sigmoid": "Sigmoid", "squaredcos_cap_v2": "Cosine"}
PARAMETERIZATIONS = {"epsilon": "Epsilon", "v_prediction": "V", "sample": "X0"}
LADDERS = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential"}
# Settings whose values are words, with those that are known here.
WORDS: dict[str, tuple[Any, ...]] = {
    "beta_schedule": tuple(SCHEDULES),
    "prediction_type": tuple(PARAMETERIZATIONS),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
# The other settings that are read, and those that change nothing where the rest is as it is here; all that remain have no counterpart.
READ = {"num_train_timesteps", "beta_start", "beta_end", "steps_offset", "clip_sample", "clip_sample_range", "rescale_betas_zero_snr"}
READ |= {*LADDERS, "sigma_min", "sigma_max", "trained_betas"}
OTHERS = {float: (int,), bool: (type(None),)}  # types that a value may have where its default has this one
IDLE = {"set_alpha_to_one", "dynamic_thresholding_ratio", "sample_max_value"}


@dataclass(frozen=True)
class Known:
    """What a class of diffusers is here: a sampler of ours, whose settings are named by those of diffusers.

    It is meant where the configuration has one of the values that `where` gives for a setting. `between`: its grid lies between the time
    steps, where it interpolates sigma/alpha linearly. `inner`: its grid is DPM-Solver's, see `InnerLinspace`."""

    sampler: str
    settings: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    between: bool = False
    inner: bool = False


def multistep(sampler: str, algorithm: str, order: int, **settings: str) -> Known:
    """DPMSolverMultistepScheduler of an algorithm and an order; without a setting named `solver`, of the solver that is its default."""
    return Known(sampler, settings, {"algorithm_type": (algorithm,), "solver_order": (order,)}, inner=True)


KNOWN: dict[str, tuple[Known, ...]] = {
    "DDPMScheduler": (
        Known("DDPM", {"variance": "variance_type"}, {"variance_type": ("fixed_small", "fixed_large")}),
        Known("DDPM", {}, {"variance_type": ("learned_range",)}),
    ),
    "DDIMScheduler": (Known("DDIM"),),
    "PNDMScheduler": (Known("PNDM", {"skip_prk_steps": "skip_prk_steps"}),),
    "EulerDiscreteScheduler": (Known("Euler", between=True),),
    "EulerAncestralDiscreteScheduler": (Known("EulerAncestral", between=True),),
    "HeunDiscreteScheduler": (Known("Heun", between=True),),
    "KDPM2DiscreteScheduler": (Known("DPM2", between=True),),
    "KDPM2AncestralDiscreteScheduler": (Known("DPM2Ancestral", between=True),),
    "LMSDiscreteScheduler": (Known("LMS", between=True),),
    "DPMSolverMultistepScheduler": (
        multistep("Euler", "dpmsolver++", 1),
        multistep("DPMPP2M", "dpmsolver++", 2, solver="solver_type"),
        multistep("DPMPP3M", "dpmsolver++", 3),
        multistep("DPMPP2MSDE", "sde-dpmsolver++", 2),
    ),
    "DPMSolverSinglestepScheduler": (
        Known("DPMSolverPP", {"order": "solver_order", "solver": "solver_type"}, {"algorithm_type": ("dpmsolver++",)}, inner=True),
    ),
    "DEISMultistepScheduler": (Known("DEIS", {"order": "solver_order"}, inner=True),),
    "UniPCMultistepScheduler": (Known("UniPC", {"order": "solver_order", "variant": "solver_type"}, {"predict_x0": (True,)}, inner=True),),
}


def ways_of(folder: Path) -> dict[str, Any]:
    """The groups `schedule`, `parameterization`, `sampler`, `grid` and `guidance` of a configuration, by a folder's scheduler_config.json;
    what it leaves out is diffusers' default. The number of steps and the scale of the guidance are those of diffusers' pipeline.

    Raises UserError for a scheduler, or a setting of one, that has no counterpart here."""
    said = read_json(folder / FILE)
    name = said.get("_class_name")
    if not isinstance(name, str) or name not in KNOWN:
        raise UserError(f"{folder / FILE} names the scheduler {name}, and those that can be read are {', '.join(KNOWN)}.")
    config, usual = filled_in(folder / FILE, said, getattr(imported("diffusers"), name))
    required(folder / FILE, config, WORDS)
    meant = next((known for known in KNOWN[name] if all(config[key] in values for key, values in known.where.items())), None)
    if meant is None:
        keys = sorted({key for known in KNOWN[name] for key in known.where})
        asked = ", ".join(f"{key}={config[key]}" for key in keys)
        raise UserError(f"{folder / FILE} asks for {name} with {asked}, which has no counterpart here; name another scheduler in it.")
    used = {*READ, *IDLE, *WORDS, *meant.settings.values(), *meant.where}
    required(folder / FILE, config, {key: (value, None) if value is False else (value,) for key, value in usual.items() if key not in used})
    ladder = next((word for key, word in LADDERS.items() if config.get(key)), None)
    return {
        "schedule": schedule(config, linear_in_sigma=meant.between and ladder is None and config["timestep_spacing"] == "linspace"),
        "parameterization": {"_target_": f"diffusion.parameterization.{PARAMETERIZATIONS[config['prediction_type']]}"},
        "sampler": {"_target_": f"diffusion.samplers.{meant.sampler}"} | {ours: config[key] for ours, key in meant.settings.items()},
        "grid": grid(config, meant, ladder),
        "guidance": guidance(config),
    }


def filled_in(file: Path, said: Mapping[str, Any], scheduler: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the settings of a scheduler of diffusers, what a file leaves out being their defaults; these defaults).

    Raises UserError for a value of another type than the default's, and what diffusers cannot make a scheduler of."""
    usual = {key: parameter.default for key, parameter in signature(scheduler.__init__).parameters.items() if key != "self"}
    for key, default in usual.items():
        value, kind = said.get(key, default), type(default)
        if default is not None and type(value) not in (kind, *OTHERS.get(kind, ())):
            raise UserError(f"{file} has {key}={value}, where diffusers has a value such as {default}; it is damaged.")
    try:
        config = dict(scheduler.from_config(dict(said)).config)
    except Exception as error:  # of values that diffusers refuses
        reason = str(error).splitlines()[0] if str(error) else "nothing more"
        raise UserError(f"{file} is none that diffusers can read ({type(error).__name__}: {reason}).") from error
    return {key: config[key] for key in usual}, usual


def schedule(config: Mapping[str, Any], linear_in_sigma: bool) -> dict[str, Any]:
    """The noise schedule. diffusers states betas for its own number of steps T, and ours are stated for 1000 and scaled by 1000/T."""
    kind, total = SCHEDULES[config["beta_schedule"]], config["num_train_timesteps"]
    zero = bool(config.get("rescale_betas_zero_snr"))
    if config.get("trained_betas") is not None:
        if len(values := list(config["trained_betas"])) != total:
            raise UserError(f"{FILE} has {len(values)} trained_betas for num_train_timesteps={total}; it is damaged.")
        listed = {"_target_": "diffusion.foreign.scheduler.Listed", "num_timesteps": total, "values": values}
        return listed | {"zero_terminal_snr": zero, "linear_in_sigma": linear_in_sigma}
    ends = {} if kind == "Cosine" else {key: config[key] * total / 1000 for key in ("beta_start", "beta_end")}
    found = {"_target_": f"diffusion.schedules.{kind}", "num_timesteps": total, **ends, "zero_terminal_snr": zero}
    return found | {"linear_in_sigma": linear_in_sigma}


def grid(config: Mapping[str, Any], meant: Known, ladder: str | None) -> dict[str, Any]:
    """The grid. It ends at t = 0, also where diffusers' ends at the level of the first time step (set_alpha_to_one=false)."""
    if ladder is not None:
        ends = {key: config[key] for key in ("sigma_min", "sigma_max") if config.get(key) is not None}
        return {"_target_": f"diffusion.grids.{ladder}", "steps": 50, **ends}
    spacing = config.get("timestep_spacing", "linspace")  # DPM-Solver's single steps know no other, and no offset
    settings = {"leading": {"offset": config.get("steps_offset", 0)}, "trailing": {}, "linspace": {"rounded": not meant.between}}[spacing]
    place = "diffusion.foreign.scheduler.Inner" if meant.inner and spacing != "trailing" else "diffusion.grids."
    return {"_target_": f"{place}{spacing.capitalize()}", "steps": 50, **settings}


def guidance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Classifier-free guidance, and the clipping of x_0 where the scheduler clips it."""
    stages: dict[str, Any] = {"cfg": {"_target_": "diffusion.guidance.ClassifierFree", "scale": 7.5, "negative": None}}
    if config.get("clip_sample"):
        limit = config["clip_sample_range"]
        stages["clip"] = {"_target_": "diffusion.guidance.Clip", "low": -limit, "high": limit}
    return stages


@dataclass(frozen=True)
class Listed(Betas):
    """Betas that are listed one by one, diffusers' trained_betas. Raises ValueError unless there are num_timesteps of them."""

    _: KW_ONLY
    values: Sequence[Probability]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))  # of a list, which no table is kept of
        if len(self.values) != self.num_timesteps:
            raise ValueError(f"There are {len(self.values)} betas for num_timesteps={self.num_timesteps}: they should be as many.")
        super().__post_init__()

    def betas(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


def without_last(times: Tensor) -> Tensor:
    """The times without the last one before 0."""
    return torch.cat([times[:-2], times[-1:]])


class InnerLinspace(Linspace):
    """`Linspace` of one step more, from T - 1 to 0, whose step 0 is left out: DPM-Solver's even steps, and those of UniPC."""

    def __call__(self, schedule: Schedule) -> Tensor:
        return without_last(Linspace(self.steps + 1, self.rounded)(schedule))


class InnerLeading(Leading):
    """`Leading` of one step more, whose last is left out."""

    def __call__(self, schedule: Schedule) -> Tensor:
        return without_last(Leading(self.steps + 1, self.offset)(schedule))
