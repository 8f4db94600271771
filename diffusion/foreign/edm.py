"""The U-Nets of NVlabs/edm (Karras et al. 2022) as ours: SongUNet, which is DDPM++ and NCSN++, and DhariwalUNet, which is ADM.

Their published files hold code beside the tensors, which is not run here: what is read is the state dict of a network, which their own
repository gives whoever trusts such a file. It says all of the network but the preconditioning around it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.foreign.converted import USUAL, Converted, configured
from diffusion.foreign.edm_tensors import PART, TOPMOST, Found, check_tensors, found_in_tensors, weights_of
from diffusion.foreign.flags import Flags, numbers_in
from diffusion.foreign.layouts import Layout, Published, sha256_of
from diffusion.support.errors import UserError

# The options of train.py that say what is trained; `precond` is what its networks stand in, and the others are constants of these.
OPTIONS: Mapping[str, Any] = {
    **{"precond": "", "arch": "", "cond": False, "cbase": None, "cres": "", "dropout": 0.0, "augment": 0.0, "fp16": False},
    **{"label_dropout": 0.0, "sigma_data": 0.5, "beta_d": 19.9, "beta_min": 0.1, "steps": 18},
}


def read_edm(published: Published) -> Converted:
    """The model whose network, in its preconditioning or without it, has this state dict. Raises UserError for options that the tensors
    contradict, and for what has no counterpart."""
    options = Flags(published.flags, OPTIONS, "EDM's train.py")
    tensors = {name.removeprefix("model."): tensor for name, tensor in published.tensors.items()}
    found = found_in_tensors(tensors)
    check_tensors(tensors, found)
    augmented = "map_augment.weight" in tensors
    check_options(options, found, augmented)
    precond = "iddpm" if "u" in tensors else preconditioning(options, found, augmented)
    options.agree("precond", precond)
    channels, side = found.in_channels, found.sides[0]
    if found.out_channels != channels * (2 if precond == "iddpm" else 1):
        raise UserError(f"{published.path} takes {channels} channels and makes {found.out_channels}, which --precond {precond} does not.")
    config = configured(
        network_settings(options, found, precond),
        (side, side, channels),
        {**PRECONDITIONING[precond](options), **around_edm(options, found.num_classes > 0)},
        name=published.path.stem,
        num_classes=found.num_classes,
        null_class=options["label_dropout"] > 0,
        learned_variance=precond == "iddpm",
    )
    notes = [f"The preconditioning is taken to be {precond}."]
    if augmented:
        notes.append("map_augment is left out: it has no bias, and samples have no augmentation, so that it adds nothing to them.")
    origin = {
        "file": published.path.name,
        "sha256": sha256_of(published.path),
        "layout": "EDM's SongUNet or DhariwalUNet",
        "flags": dict(options.said),
    }
    return Converted(config, dict(weights_of(tensors, found)), origin | {"notes": notes})


def check_options(options: Flags, found: Found, augmented: bool) -> None:
    """Raises UserError for an option that the tensors contradict."""
    options.agree("cond", found.num_classes > 0)
    options.agree("cbase", base_of(found))
    options.agree("cres", tuple(width // base_of(found) for width in found.widths), numbers_in("cres", options["cres"] or "0"))
    options.agree("arch", ("ncsnpp" if found.fourier else "ddpmpp") if found.song else "adm")
    options.agree("augment", augmented, options["augment"] > 0)


def preconditioning(options: Flags, found: Found, augmented: bool) -> str:
    """What stands around the network, where the tensors do not say it: what the options say; EDM's for a network that was trained with
    augmentation and for ADM, as theirs were. Raises UserError if it has no counterpart here, or has to be said."""
    if (said := options["precond"]) not in ("", *PRECONDITIONING):
        raise UserError(f"--precond {said} is not read: what has a counterpart here is {', '.join(PRECONDITIONING)}.")
    if not said and found.song and not augmented:
        raise UserError("The tensors do not say their preconditioning: say --precond edm, or --precond vp for one of EDM's baselines.")
    if said == "vp" and found.fourier:
        raise UserError("--precond vp with Fourier features of the time is not read; their baselines have sinusoids with it.")
    return said or "edm"


def base_of(found: Found) -> int:
    """model_channels: the embedding is four times as wide, as channel_mult_emb says everywhere."""
    return found.embedding // 4


def network_settings(options: Flags, found: Found, precond: str) -> dict[str, Any]:
    """The group `network`."""
    base, width = base_of(found), found.features // (2 if found.fourier else 1)
    own = {"class_first": True} if found.song else {"eps": 1e-5, "shift": 0.0, "cosines_first": True}
    detail = {
        **own,
        "time_channels": None if width == base else width,
        "stem_channels": None if found.stem == found.widths[0] else found.stem,
        "label_scale": 0.999 if precond == "vp" else 1.0,
    }
    return {
        "_target_": "diffusion.networks.UNet",
        "channels": base,
        "multipliers": [width // base if width % base == 0 else width / base for width in found.widths],
        "res_blocks": found.blocks,
        "attention": found.attention,
        "heads": 1,
        "head_channels": None if found.song else 64,
        "dropout": options["dropout"],
        "scale_shift": not found.song,
        "resample_in_resblock": True,
        "embedding_channels": found.embedding,
        "skip_rescale": found.song,
        "fir": found.fir,
        "fourier_scale": 16.0 if found.fourier else None,
        "project_skip": found.song,
        "attention_once": found.song,
        "input_pyramid": found.pyramid,
        "details": {"_target_": "diffusion.networks.details.Details", **detail},
    }


def of_edm(options: Flags) -> dict[str, Any]:
    """EDMPrecond (EDM eq. 7, table 1): c_noise = ln(sigma) / 4 is the label of schedule=edm."""
    schedule = {"_target_": "diffusion.schedules.EDM", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    return {"schedule": schedule, "parameterization": {"_target_": "diffusion.parameterization.EDM", "sigma_data": options["sigma_data"]}}


def of_vp(options: Flags) -> dict[str, Any]:
    """VPPrecond: epsilon on the VP SDE, whose beta runs from beta_min to beta_min + beta_d; it is told 999 t."""
    low = options["beta_min"]
    schedule = {"_target_": "diffusion.schedules.VPSDE", "beta_min": low, "beta_max": low + options["beta_d"]}
    return {"schedule": schedule, "parameterization": {"_target_": "diffusion.parameterization.Epsilon"}}


def of_iddpm(options: Flags) -> dict[str, Any]:
    """iDDPMPrecond: epsilon on the cosine schedule of 1000 steps, and a learned variance, which EDM's sampler does not look at."""
    schedule = {"_target_": "diffusion.schedules.Cosine", "num_timesteps": 1000}
    return {"schedule": schedule, "parameterization": {"_target_": "diffusion.parameterization.Epsilon"}}


PRECONDITIONING = {"edm": of_edm, "vp": of_vp, "iddpm": of_iddpm}


def around_edm(options: Flags, told: bool) -> dict[str, Any]:
    """generate.py's own way: Heun's method over the paper's ladder; nothing is clipped."""
    ladder = {"_target_": "diffusion.grids.EDM", "steps": options["steps"], "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
    guidance = {"cfg": USUAL["guidance"]["cfg"]} if told else {}
    return {"sampler": {"_target_": "diffusion.samplers.Heun"}, "grid": ladder, "guidance": guidance}


def refuse_pickle(path: Path) -> None:
    """Raises UserError for a .pkl, which EDM's published networks are: it holds their code, which would run when it is read."""
    if path.suffix == ".pkl":
        raise UserError(
            f"{path} is a pickle, which runs as a program when it is read, so it is not read here. If you trust who made it, take its "
            "tensors out with EDM's own repository: python -c \"import pickle, torch; torch.save(pickle.load(open('FILE.pkl', "
            "'rb'))['ema'].state_dict(), 'FILE.pt')\" in its folder; then convert FILE.pt."
        )


def layout_of(name: str, prefix: str) -> Layout:
    """The layout whose names have this prefix, which the preconditioning around a network gives its tensors."""
    more = "|u" if prefix else ""
    plain = rf"({'|'.join(TOPMOST)}|map_label|map_augment)\.(weight|bias)|map_noise\.freqs|{PART.pattern}"
    required = frozenset(f"{prefix}{layer}.weight" for layer in ("map_layer0", "map_layer1"))
    return Layout(name, required, re.compile(rf"{re.escape(prefix)}({plain}){more}"), read_edm)


EDM_LAYOUTS = (
    layout_of("EDM's SongUNet or DhariwalUNet in its preconditioning", "model."),
    layout_of("EDM's SongUNet or DhariwalUNet", ""),
)
