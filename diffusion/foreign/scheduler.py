"""diffusers' scheduler_config.json in our words: the schedule, the meaning of the network's output, and the folder's own way to sample."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.foreign.files import brief, imported, read_json, required, typed
from diffusion.grids import Leading, Linspace
from diffusion.schedules import Schedule
from diffusion.schedules.discrete import Betas, Linear
from diffusion.support.build import build, review
from diffusion.support.errors import UserError, did_you_mean
from diffusion.support.ranges import Order, Positive, Probability, Some

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
# The kinds of settings whose default does not say them; of the others it is the default's type.
KINDS: dict[str, Any] = {
    "num_train_timesteps": signature(Linear).parameters["num_timesteps"].annotation,
    **dict.fromkeys(("beta_start", "beta_end"), Probability),
    **dict.fromkeys(("sigma_min", "sigma_max"), Positive | None),
    "trained_betas": list[Probability] | None,
    "clip_sample_range": Positive,
    "steps_offset": Some,
    "solver_order": Order,
}
# What earlier versions of diffusers wrote beside the settings of today, and what changed nothing of it.
EARLIER: dict[str, tuple[Any, ...]] = {
    "tensor_format": ("pt", "np", None),
    "timestep_values": (None,),
    "predict_epsilon": (True, None),
    "noise_sampler_seed": (None,),
}
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
        raise UserError(f"{folder / FILE} names the scheduler {brief(name)}, and those that can be read are {', '.join(KNOWN)}.")
    config, usual = filled_in(folder / FILE, said, getattr(imported("diffusers"), name))
    meant = next((known for known in KNOWN[name] if all(config[key] in values for key, values in known.where.items())), None)
    if meant is None:
        keys = sorted({key for known in KNOWN[name] for key in known.where})
        asked = ", ".join(f"{key}={brief(config[key])}" for key in keys)
        raise UserError(f"{folder / FILE} asks for {name} with {asked}, which has no counterpart here; name another scheduler in it.")
    used = {*READ, *IDLE, *WORDS, *meant.settings.values(), *meant.where}
    required(folder / FILE, config, {key: (value, None) if value is False else (value,) for key, value in usual.items() if key not in used})
    ladder = next((word for key, word in LADDERS.items() if config.get(key)), None)
    found = {
        "schedule": schedule(config, linear_in_sigma=meant.between and ladder is None and config["timestep_spacing"] == "linspace"),
        "parameterization": {"_target_": f"diffusion.parameterization.{PARAMETERIZATIONS[config['prediction_type']]}"},
        "sampler": {"_target_": f"diffusion.samplers.{meant.sampler}"} | {ours: config[key] for ours, key in meant.settings.items()},
        "grid": grid(config, meant, ladder),
        "guidance": guidance(config),
    }
    require_ways(folder / FILE, found)
    return found


def require_ways(file: Path, found: Mapping[str, Any]) -> None:
    """Raises UserError for groups of a configuration that nothing can be made of, or whose grid leaves the schedule."""
    try:
        for group in ("sampler", "guidance"):
            review(found[group], group)
        schedule, meant = build(found["schedule"], "schedule"), build(found["parameterization"], "parameterization")
        build({**found["grid"], "steps": 1}, "grid")(schedule)
    except ValueError as error:
        raise UserError(f"{file} says how to sample, and nothing can be made of it: {error}") from error
    if meant.needs_signal and schedule.reaches_noise:
        raise UserError(f"{file} has rescale_betas_zero_snr=True and prediction_type=epsilon, which says nothing of its pure noise.")


def filled_in(file: Path, said: Mapping[str, Any], scheduler: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the settings of a scheduler of diffusers, what a file leaves out being their defaults; these defaults).

    Raises UserError for a key that no scheduler has, a value of another kind than the setting's, and what diffusers cannot make a scheduler
    of, which is asked only of values that are sound."""
    usual = defaults_of(scheduler)
    require_known(file, said, usual, scheduler)
    given = {key: said.get(key, default) for key, default in usual.items()}
    typed(file, given, {key: KINDS.get(key, kind_of(default)) for key, default in usual.items()})
    required(file, given, WORDS, "schedulers that are read")
    listed, total = given["trained_betas"], given["num_train_timesteps"]
    if listed is not None and len(listed) != total:
        raise UserError(f"{file} has {len(listed)} trained_betas for num_train_timesteps={total}; it is damaged.")
    sound = {key: value for key, value in said.items() if not (value is None and usual.get(key) is False)}
    config, reason = made_of(scheduler, sound)
    if config is None:
        key = next((key for key in sound if made_of(scheduler, {k: v for k, v in sound.items() if k != key})[0] is not None), None)
        wrong = "settings" if key is None else f"{key}={brief(said[key])},"
        raise UserError(f"{file} has {wrong} of which diffusers makes no {scheduler.__name__} ({brief(reason, 200)}).")
    return {key: config[key] for key in usual}, usual


def made_of(scheduler: Any, said: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """(the settings of a scheduler that diffusers makes of a configuration, or None if it makes none; why not)."""
    try:
        return dict(scheduler.from_config(dict(said)).config), ""
    except Exception as error:  # of many kinds
        return None, str(error).partition("\n")[0].partition(" for <class")[0].strip() or type(error).__name__


def defaults_of(scheduler: Any) -> dict[str, Any]:
    """The settings of a class of diffusers, and their defaults."""
    settings = list(signature(scheduler.__init__).parameters.values())[1:]
    return {setting.name: setting.default for setting in settings if setting.kind not in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD)}


def kind_of(default: Any) -> Any:
    """What a setting of this default may be: null too where it is false, as diffusers reads that, and anything where it is null."""
    return object if default is None else bool | None if default is False else type(default)


def require_known(file: Path, said: Mapping[str, Any], usual: Mapping[str, Any], scheduler: Any) -> None:
    """Raises UserError for a key that is no setting of this scheduler nor one that earlier versions wrote. It may be one of a scheduler
    that this one can be made from in diffusers, which writes the settings of both and does not look at those of the other."""
    unknown = [key for key in said if not key.startswith("_") and key not in usual]
    others = {key for name in scheduler._compatibles for key in defaults_of(getattr(imported("diffusers"), name))} if unknown else set()
    for key in unknown:
        if key not in others | EARLIER.keys():
            hint = did_you_mean(key, usual)
            raise UserError(f"{file} has {key}={brief(said[key])}, which is no setting of a {said['_class_name']}{hint}.")
    required(file, {key: said[key] for key in unknown if key not in others}, EARLIER, "schedulers that are read")


def schedule(config: Mapping[str, Any], linear_in_sigma: bool) -> dict[str, Any]:
    """The noise schedule. diffusers states betas for its own number of steps T, and ours are stated for 1000 and scaled by 1000/T."""
    kind, total = SCHEDULES[config["beta_schedule"]], config["num_train_timesteps"]
    zero = bool(config.get("rescale_betas_zero_snr"))
    if config.get("trained_betas") is not None:
        values = list(config["trained_betas"])
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
