"""Pixel models in diffusers' format as models of ours: the folder of a DDPMPipeline and its kin, or of a UNet2DModel alone."""

import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.foreign.converted import Converted, configured, empty_network
from diffusion.foreign.files import STEMS, WEIGHTS, brief, imported, read_json, require_parts
from diffusion.foreign.layouts import NAMED, Layout, Weights, require_numbers, sha256_of, tensors_in
from diffusion.foreign.scheduler import FILE, ways_of
from diffusion.foreign.unet2d import NAME, names_of, settings_of
from diffusion.networks import UNet
from diffusion.networks.blocks import group_norm
from diffusion.networks.details import Details
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.support.sizes import height_and_width

INDEX, CONFIG, MARK = "model_index.json", "config.json", "diffusion.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
ALL_STEPS = ("DDPMPipeline", 1000, 50)  # the pipeline whose usual number of steps is the first number, and that of the others
ASSUMED = {
    "schedule": {"_target_": "diffusion.schedules.Linear", "num_timesteps": 1000},
    "parameterization": {"_target_": "diffusion.parameterization.Epsilon"},
}
KEYS = frozenset({"conv_in.weight", "conv_out.weight", "conv_norm_out.weight", "time_embedding.linear_1.weight"})
# The names that attention's layers had in diffusers before 0.15.
BEFORE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def without_folder(published: Weights) -> Converted:
    """Raises UserError: the file of a network's weights does not say how it is built."""
    raise UserError(f"{published.path} holds weights of diffusers, whose settings are in {CONFIG} beside them: give the folder.")


IN_A_FOLDER = Layout(
    f"diffusers' {NAME}, in a folder",
    KEYS,
    re.compile(r"(conv_in|conv_out|conv_norm_out|time_embedding|class_embedding|down_blocks|mid_block|up_blocks)\..+"),
    without_folder,
)


def is_unet(folder: str | Path) -> bool:
    """Whether there is a folder of a UNet2DModel."""
    file = Path(folder) / CONFIG
    return file.is_file() and read_json(file).get("_class_name") == NAME


def pixel_model(folder: str | Path) -> Converted:
    """The model of a folder: a pipeline of a UNet2DModel and a scheduler, in folders of their own or, as the first were published, beside
    each other; or a UNet2DModel alone, for which DDPM's linear schedule and noise as the output are assumed, with a warning.

    Raises UserError for another kind of folder, for one that is not complete, and for a setting that has no counterpart, by its name."""
    folder = Path(folder)
    kind = pipeline_of(folder) if (folder / INDEX).is_file() else None
    unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
    file, notes, place = unet / CONFIG, [], folder.resolve().name  # no more of its path, since the origin is given away
    said = read_json(file)
    if said.get("_class_name") != NAME:
        raise UserError(f"{file} is of a {brief(said.get('_class_name'))}, and of networks of pixels diffusers' {NAME} can be read.")
    ways = dict(ASSUMED)
    if kind is not None or (scheduler / FILE).is_file():
        ways = pixel_ways(scheduler, kind)
        notes += other_scheduler(folder, scheduler) if kind is not None else []
    else:
        notes.append(f"{place} has no scheduler: betas linear from 0.0001 to 0.02 in 1000 steps and noise as the output are assumed.")
    usual = {key: p.default for key, p in signature(getattr(imported("diffusers"), NAME).__init__).parameters.items() if key != "self"}
    weights = weights_file(unet)
    if ".fp16." in weights.name:
        notes.append(f"Its weights are of half precision, since {weights.name} is the only file of them.")
    name = (Path(place) / weights.relative_to(folder)).as_posix()
    origin = {"file": name, "sha256": sha256_of(weights), "layout": f"diffusers' {NAME}", "notes": notes}
    described = description(folder, file, {**usual, **said}, settings_of(file, said, usual), ways)
    if described["conditions"].get("null_class") is False:
        notes.append("It has learned no class that stands for none, so it is guided by none.")
    try:
        empty = empty_network(described)
    except ValueError as error:  # of settings that do not go together
        raise UserError(f"{file} describes no network: {error}") from error
    described["network"] = plainest(described["network"], empty)
    tensors = tensors_in(weights)
    require_numbers(weights, tensors)
    return Converted(described, ours_of(empty, tensors, weights, marked(folder)), origin)


def plainest(settings: Mapping[str, Any], network: UNet) -> dict[str, Any]:
    """A network's settings without what is usual here: groups of norms that are those of our rule, and details that are all DDPM's. So a
    network of conf/ that computes the same is found to."""
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    ruled = all(norm.num_groups == group_norm(norm.num_channels).num_groups for norm in norms)
    details = {**settings["details"], "groups": None} if ruled else settings["details"]
    usual = build(details, "network.details") == Details()
    return {key: value for key, value in {**settings, "details": None if usual else details}.items() if value is not None}


def pipeline_of(folder: Path) -> str:
    """The class of a folder's pipeline. Raises UserError for one that is not read."""
    index = read_json(folder / INDEX)
    name, unet = index.get("_class_name"), index.get("unet")
    if name not in PIPELINES or not isinstance(unet, list) or unet[-1:] != [NAME]:
        what = unet[-1] if isinstance(unet, list) and unet else unet
        raise UserError(
            f"{folder} holds a {brief(name)} of a {brief(what)}, and of models in diffusers' format {', '.join(PIPELINES)} of a {NAME}, "
            "and Stable Diffusion 1.x and 2.x, can be read."
        )
    require_parts(folder / INDEX, index, dict.fromkeys(("unet", "scheduler"), "diffusers"))
    return str(name)


def other_scheduler(folder: Path, scheduler: Path) -> list[str]:
    """A sentence if a folder's index names another scheduler than the file of its settings, which is the one that is taken."""
    named, settled = read_json(folder / INDEX)["scheduler"][1], read_json(scheduler / FILE)["_class_name"]
    return [] if named == settled else [f"{INDEX} names a {brief(named)}, and {FILE} a {settled}, which is what is taken."]


def pixel_ways(folder: Path, kind: str | None) -> dict[str, Any]:
    """What `ways_of` says of a scheduler, with the pipeline's number of steps, and no guidance but the clipping."""
    ways = ways_of(folder)
    first, many, few = ALL_STEPS
    total = ways["schedule"]["num_timesteps"]
    ways["grid"]["steps"] = min(total, many if kind in (first, None) else few)
    ways["guidance"]["cfg"]["scale"] = 1.0
    return ways


def description(folder: Path, file: Path, config: Mapping[str, Any], network: Mapping[str, Any], ways: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the model with this network. Raises UserError for channels that make none."""
    channels, out, size = config["in_channels"], config["out_channels"], config["sample_size"]
    learned = ways.get("sampler") == {"_target_": "diffusion.samplers.DDPM"}  # of learned_range, the only variance that is not said
    if out != channels * (1 + learned):
        raise UserError(
            f"{file} has in_channels={channels} and out_channels={out}: as many are needed, or with the scheduler's "
            "variance_type=learned_range twice as many."
        )
    classes, known = config["num_class_embeds"] or 0, marked(folder)
    return configured(
        network,
        [*height_and_width(size), channels],
        {**ways, "sampler": {"_target_": "diffusion.samplers.DDPM", "variance": "learned"}} if learned else ways,
        name=folder.resolve().name,
        num_classes=classes - known if classes else 0,
        null_class=known,
        learned_variance=learned,
    )


def marked(folder: Path) -> bool:
    """Whether a folder says, as those that we write do, that the last of its classes stands for none."""
    return (folder / MARK).is_file() and read_json(folder / MARK).get("null_class") is True


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder, the first of `WEIGHTS`. Raises UserError if there is none, or it is in parts."""
    found = [folder / name for name in WEIGHTS]
    for file in found:
        if file.is_file():
            return file
    if parts := sorted(folder.glob(f"{STEMS['diffusers']}*.index.json")):
        raise UserError(f"{parts[0]} lists weights in parts, which are not read: save them as one file.")
    raise UserError(f"{folder} holds no weights, {' or '.join(file.name for file in found)}; the folder is not complete.")


def ours_of(network: UNet, theirs: Mapping[str, Tensor], file: Path, null_class: bool) -> dict[str, Tensor]:
    """diffusers' tensors as those of our network, which may be on the device "meta": float32, a query, key and value in one. Where theirs
    have no null class, ours is of zeros.

    Raises UserError for tensors that are missing, left over, or of another shape."""
    names = names_of(network)
    renamed = {modern(name): tensor for name, tensor in theirs.items()}
    expected = {name for several in names.values() for name in several}
    if expected != renamed.keys():
        differing = {"lacks": expected - renamed.keys(), "has no place for": renamed.keys() - expected}
        said = " and ".join(f"{what} {', '.join(sorted(few)[:NAMED])}" for what, few in differing.items() if few)
        raise UserError(f"{file} does not hold the weights that its {CONFIG} describes: it {said}.")
    found = {}
    for name, own in network.state_dict().items():
        tensor = torch.cat([renamed[other] for other in names[name]]).float()
        if name == "classes.weight" and not null_class:
            tensor = torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
        if tensor.shape != own.shape:
            raise UserError(f"{file} has {names[name][0]} of shape {list(tensor.shape)}, where its {CONFIG} describes {list(own.shape)}.")
        found[name] = tensor
    return found


def modern(name: str) -> str:
    """A tensor's name as today's diffusers has it."""
    before, _, last = name.rpartition(".")
    place, _, layer = before.rpartition(".")
    now = next((new for new, old in BEFORE.items() if old == layer and "attentions." in place), layer)
    return f"{place}.{now}.{last}" if place else name


def theirs_of(network: UNet, null_class: bool) -> dict[str, Tensor]:
    """The tensors of our network as diffusers': the reverse of `ours_of`, with the null class as the last of the classes where there is
    one that was learned."""
    found: dict[str, Tensor] = {}
    for name, several in names_of(network).items():
        tensor = network.state_dict()[name]
        parts = (tensor[:-1] if name == "classes.weight" and not null_class else tensor).chunk(len(several))
        found |= {other: part.contiguous() for other, part in zip(several, parts, strict=True)}
    return found
