"""The U-Net of openai/improved-diffusion (Nichol & Dhariwal 2021) and openai/guided-diffusion (Dhariwal & Nichol 2021) as ours.

Both write one layout, and what their code computes of it is one function; the scripts' defaults differ in rescale_timesteps alone. The
tensors are silent about the heads of the attention, the size of the pictures and the noise schedule, so that flags say these."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.foreign.converted import USUAL, Converted, configured
from diffusion.foreign.flags import Flags, numbers_in, spelled_flag
from diffusion.foreign.layouts import Layout, Published, sha256_of
from diffusion.support.errors import UserError

# The flags of `model_and_diffusion_defaults`, and how image_sample.py says to sample. What changes no number here is read and not used.
USUAL_FLAGS: Mapping[str, Any] = {
    **{"image_size": None, "num_channels": 128, "num_res_blocks": 2, "channel_mult": "", "attention_resolutions": "16,8"},
    **{"num_heads": 4, "num_head_channels": -1, "num_heads_upsample": -1, "use_new_attention_order": False, "resblock_updown": False},
    **{"use_scale_shift_norm": True, "dropout": 0.0, "class_cond": False, "learn_sigma": False, "sigma_small": False},
    **{"diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False, "use_kl": False},
    **{"timestep_respacing": "", "use_ddim": False, "clip_denoised": True},
    **{"use_checkpoint": False, "use_fp16": False, "rescale_learned_sigmas": False},
}
SCHEDULES_OF = {"linear": "Linear", "cosine": "Cosine"}
# The levels' widths that the scripts give each size of pictures, unless --channel_mult does.
WIDTHS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}
TOP = {
    "time_embed.0": "time.hidden",
    "time_embed.2": "time.out",
    "input_blocks.0.0": "stem",
    "label_emb": "classes",
    "out.0": "norm",
    "out.2": "out",
}
PLACES_OF = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"}
LAYERS = {
    **{"in_layers.0": "norm", "in_layers.2": "conv", "emb_layers.1": "condition.project", "out_layers.0": "condition.norm"},
    **{"out_layers.3": "out", "skip_connection": "skip", "norm": "norm", "qkv": "qkv", "proj_out": "out", "op": "conv", "conv": "conv"},
}
INNER = "|".join(map(re.escape, LAYERS))
NAME = re.compile(rf"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?({INNER})\.(weight|bias)")


class Shape(NamedTuple):
    """What the tensors say of the network: the attention's levels by their halvings, from 0."""

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[float, ...]
    res_blocks: int
    attention: tuple[int, ...]
    num_classes: int
    scale_shift: bool
    updown: bool


def read_openai(published: Published) -> Converted:
    """The model in a file of either repository. Raises UserError for flags that the tensors contradict, and what has no counterpart."""
    flags = Flags(published.flags, USUAL_FLAGS, "improved- or guided-diffusion")
    shape = shape_of(published.tensors)
    learned = shape.out_channels == 2 * shape.in_channels
    if shape.out_channels not in (shape.in_channels, 2 * shape.in_channels):
        raise UserError(
            f"{published.path} takes {shape.in_channels} channels and makes {shape.out_channels}: an upsampler, which is told a smaller "
            "picture, is not read."
        )
    check_flags(flags, shape, learned)
    size, notes = flags["image_size"], flags.assumed("diffusion_steps", "noise_schedule")
    heads = ("num_head_channels",) if "num_head_channels" in flags.said else ("num_heads",)
    config = configured(
        unet_settings(flags, shape),
        (size, size, shape.in_channels),
        ways_to_sample(flags, learned),
        name=published.path.stem,
        num_classes=shape.num_classes,
        learned_variance=learned,
    )
    weights = {our_name(name, shape.res_blocks): value_of(name, tensor, flags) for name, tensor in published.tensors.items()}
    origin = {"file": published.path.name, "sha256": sha256_of(published.path), "layout": OPENAI.name, "flags": dict(flags.said)}
    return Converted(config, weights, origin | {"notes": [*notes, *flags.assumed(*heads, "use_new_attention_order")]})


def shape_of(tensors: Mapping[str, Tensor]) -> Shape:
    """What the tensors say. The way up tells where levels end: there a block has a part that doubles the sides."""
    depth = 1 + max(int(found[2]) for name in tensors if (found := NAME.fullmatch(name)) and found[1] == "output_blocks")
    ends = [
        k
        for k in range(depth)
        for part in (1, 2)
        if {f"output_blocks.{k}.{part}.{end}.weight" for end in ("conv", "in_layers.0")} & tensors.keys()
    ]
    layers = ends[0] + 1 if ends else depth  # of a level on the way up: one more than on the way down
    levels = range(depth // layers)
    channels = tensors["time_embed.0.weight"].shape[1]
    firsts = [f"input_blocks.{level * layers + 1}" for level in levels]
    widths = [tensors[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts if f"{first}.0.out_layers.3.weight" in tensors]
    told = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    classes = tensors.get("label_emb.weight")
    return Shape(
        tensors["input_blocks.0.0.weight"].shape[1],
        tensors["out.2.weight"].shape[0],
        channels,
        tuple(width // channels if width % channels == 0 else width / channels for width in widths),
        layers - 1,
        tuple(level for level, first in zip(levels, firsts, strict=True) if f"{first}.1.qkv.weight" in tensors),
        0 if classes is None else len(classes),
        told == 2 * widths[0],
        any(f"output_blocks.{k}.{part}.in_layers.0.weight" in tensors for k in ends for part in (1, 2)),
    )


def check_flags(flags: Flags, shape: Shape, learned: bool) -> None:
    """Raises UserError for a flag that the tensors contradict, and for one whose value has no counterpart."""
    size, word, steps = flags["image_size"], flags["attention_resolutions"], flags["diffusion_steps"]
    if size < 1 or steps < 2:
        raise UserError(f"--image_size {size} and --diffusion_steps {steps} should be at least 1 and 2.")
    found = tuple(size // 2**level for level in shape.attention)
    flags.agree("num_channels", shape.channels)
    flags.agree("num_res_blocks", shape.res_blocks)
    flags.agree("use_scale_shift_norm", shape.scale_shift)
    flags.agree("resblock_updown", shape.updown)
    flags.agree("learn_sigma", learned)
    flags.agree("class_cond", shape.num_classes > 0)
    flags.agree("attention_resolutions", found, tuple(sorted(numbers_in("attention_resolutions", word), reverse=True)))
    widths = flags["channel_mult"]
    if not widths and WIDTHS.get(size) != shape.multipliers:
        said = spelled_flag(shape.multipliers)
        raise UserError(
            f"--image_size {size} goes with other widths than the tensors have, {said}: say the size, or --channel_mult {said} too."
        )
    if widths:
        flags.agree("channel_mult", shape.multipliers, numbers_in("channel_mult", widths))
    if flags["num_heads_upsample"] not in (-1, flags["num_heads"]):
        raise UserError("--num_heads_upsample other than --num_heads is not read: the network here has as many heads on both ways.")
    if steps != 1000 and "rescale_timesteps" not in flags.said:
        raise UserError(
            f"With --diffusion_steps {steps} the label matters: say --rescale_timesteps True, improved-diffusion's usual value, or False, "
            "guided-diffusion's."
        )
    if flags["noise_schedule"] not in SCHEDULES_OF:
        raise UserError(f"--noise_schedule {flags['noise_schedule']} is not one of {', '.join(SCHEDULES_OF)}.")


def unet_settings(flags: Flags, shape: Shape) -> dict[str, Any]:
    """The group `network`. Raises UserError for heads that do not divide a width."""
    size, head = flags["image_size"], flags["num_head_channels"]
    rescaled = 1000 / flags["diffusion_steps"] if flags["rescale_timesteps"] else 1.0
    detail = {"groups": 32, "eps": 1e-5, "shift": 0.0, "cosines_first": True, "symmetric": True, "label_scale": rescaled}
    return {
        "_target_": "diffusion.networks.UNet",
        "channels": shape.channels,
        "multipliers": list(shape.multipliers),
        "res_blocks": shape.res_blocks,
        "attention": [size // 2**level for level in shape.attention],
        "heads": flags["num_heads"],
        "head_channels": None if head == -1 else head,
        "dropout": flags["dropout"],
        "scale_shift": shape.scale_shift,
        "resample_in_resblock": shape.updown,
        "details": {"_target_": "diffusion.networks.details.Details", **detail},
    }


def ways_to_sample(flags: Flags, learned: bool) -> dict[str, Any]:
    """The groups of a configuration that say what the output means and how the authors sample."""
    steps, word = flags["diffusion_steps"], flags["timestep_respacing"] or str(flags["diffusion_steps"])
    strided = word.startswith("ddim")
    count = word.removeprefix("ddim")
    if not count.isdecimal() or not 0 < int(count) <= steps or (strided and steps % int(count)):
        raise UserError(f"--timestep_respacing {word} should be a number of steps such as 250, or ddim25 of a number that divides {steps}.")
    fixed = "fixed_small" if flags["sigma_small"] else "fixed_large"
    drawn = {"_target_": "diffusion.samplers.DDPM", "variance": "learned" if learned else fixed}
    bound = {"objective": {"_target_": "diffusion.objectives.VLB", "variance": "learned" if learned else fixed}}
    return {
        "schedule": {"_target_": f"diffusion.schedules.{SCHEDULES_OF[flags['noise_schedule']]}", "num_timesteps": steps},
        "parameterization": {"_target_": f"diffusion.parameterization.{'X0' if flags['predict_xstart'] else 'Epsilon'}"},
        "sampler": {"_target_": "diffusion.samplers.DDIM", "eta": 0.0} if flags["use_ddim"] else drawn,
        "grid": {"_target_": f"diffusion.grids.{'Leading' if strided else 'Linspace'}", "steps": int(count)},
        "guidance": {stage: USUAL["guidance"][stage] for stage in ("cfg", *(("clip",) if flags["clip_denoised"] else ()))},
        **(bound if flags["use_kl"] else {}),
    }


def our_name(name: str, res_blocks: int) -> str:
    """Our name of a tensor of theirs. Their blocks are ours; but the first on the way down is the stem, and a halving is no list of one."""
    layer, _, kind = name.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{kind}"
    found = NAME.fullmatch(name)
    assert found is not None  # the layout's pattern has matched
    place, block, part, inner, kind = found.groups()
    if place == "middle_block":
        return f"middle.{block}.{LAYERS[inner]}.{kind}"
    number = int(block) - (place == "input_blocks")
    halving = place == "input_blocks" and int(block) % (res_blocks + 1) == 0
    return f"{PLACES_OF[place]}.{number}.{'' if halving else f'{part}.'}{LAYERS[inner]}.{kind}"


def value_of(name: str, tensor: Tensor, flags: Flags) -> Tensor:
    """Our tensor: queries, keys and values above each other where theirs stand head by head, linear layers where theirs are convolutions
    of one pixel, and a row of zeros for the null class, which theirs did not learn. float32, which theirs are computed in at the ends."""
    tensor = tensor.float()
    if name == "label_emb.weight":
        return torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
    if ".qkv." in name or ".proj_out." in name:
        tensor = tensor.flatten(1) if tensor.ndim > 1 else tensor
    if ".qkv." in name and not flags["use_new_attention_order"]:
        return by_heads(tensor, flags)
    return tensor


def by_heads(rows: Tensor, flags: Flags) -> Tensor:
    """The rows of q, k and v, head by head, as all queries, all keys, all values. Raises UserError if the heads do not divide them."""
    width = len(rows) // 3
    key = "num_heads" if flags["num_head_channels"] == -1 else "num_head_channels"
    if flags[key] < 1 or width % flags[key]:
        raise UserError(f"--{key} {flags[key]} does not divide the {width} channels of an attention of the file.")
    heads = flags[key] if key == "num_heads" else width // flags[key]
    return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


OPENAI = Layout(
    "improved- and guided-diffusion's UNetModel",
    frozenset(
        f"{name}.weight"
        for name in (
            *("time_embed.0", "out.2", "input_blocks.0.0", "input_blocks.1.0.emb_layers.1", "input_blocks.1.0.out_layers.3"),
            *("middle_block.1.qkv", "output_blocks.0.0.in_layers.0"),
        )
    ),
    re.compile(rf"({'|'.join(map(re.escape, TOP))})\.(weight|bias)|{NAME.pattern}"),
    read_openai,
)
