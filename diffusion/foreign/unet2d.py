"""diffusers' UNet2DModel as our U-Net, weight by weight in both directions: its configuration, and the names of its tensors."""

from collections.abc import Iterator, Mapping
from functools import reduce
from math import gcd
from pathlib import Path
from typing import Annotated, Any

from diffusion.foreign.files import brief, required, typed
from diffusion.networks import UNet
from diffusion.networks.attention import SelfAttention
from diffusion.networks.blocks import Chain, ResidualBlock
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few, Finite, Positive, Range, Share
from diffusion.support.sizes import height_and_width

NAME = "UNet2DModel"
# What each setting is; a number that memory is taken for has a range, since the file may come from anywhere.
SETTINGS: dict[str, Any] = {
    "sample_size": Few | tuple[Few, Few] | None,
    **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups"), Few),
    **dict.fromkeys(("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds"), Few | None),
    **dict.fromkeys(("center_input_sample", "flip_sin_to_cos", "add_attention"), bool),
    **dict.fromkeys(("down_block_types", "up_block_types"), list[str]),
    **dict.fromkeys(("time_embedding_type", "downsample_type", "upsample_type", "act_fn", "resnet_time_scale_shift"), str),
    **dict.fromkeys(("mid_block_type", "class_embed_type"), str | None),
    "block_out_channels": list[Few],
    "layers_per_block": Annotated[int, Range(least=1, most=100)],
    "mid_block_scale_factor": Finite,
    "downsample_padding": int,
    **dict.fromkeys(("freq_shift", "dropout"), Share),
    "norm_eps": Positive,
}
# The values that our U-Net computes, of settings that it does not have.
ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
    **dict.fromkeys(("downsample_type", "upsample_type"), ("conv", "resnet")),
}
# What says nothing of the network: the steps of an embedding that is learned, which ONLY refuses, and what diffusers' EMA writes beside it.
IDLE = {"num_train_timesteps", "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
DOWN = {"DownBlock2D": "conv", "AttnDownBlock2D": None, "ResnetDownsampleBlock2D": "resnet"}  # how it halves; None: as downsample_type says
UP = {"UpBlock2D": "conv", "AttnUpBlock2D": None, "ResnetUpsampleBlock2D": "resnet"}
PLAIN_BLOCKS = {"conv": ("DownBlock2D", "UpBlock2D"), "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}
DETAILS = "diffusion.networks.details.Details"


def settings_of(file: Path, said: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The group `network` of a configuration, by the configuration of a UNet2DModel in `file`; what that leaves out is `usual`.

    Raises UserError for a setting that has no counterpart here, by its name."""
    if unknown := sorted(key for key in said if not key.startswith("_") and key not in usual and key not in IDLE):
        raise UserError(f"{file} has {unknown[0]}={brief(said[unknown[0]])}, which is no setting of {NAME} that can be read.")
    config = {key: said.get(key, value) for key, value in usual.items()}
    typed(file, config, SETTINGS)
    required(file, config, ONLY, "models of pixels that are read")
    resampling, attended = blocks_of(file, config)
    shifted, groups = config["resnet_time_scale_shift"] == "scale_shift", config["norm_num_groups"]
    middle_groups = config["attn_norm_num_groups"] or (None if shifted else groups)
    if config["add_attention"] and middle_groups != groups:
        raise UserError(f"{file} has attn_norm_num_groups={config['attn_norm_num_groups']}, and only norm_num_groups={groups} can be read.")
    widths = config["block_out_channels"]
    whole = all(width % widths[0] == 0 for width in widths)
    channels = widths[0] if whole else reduce(gcd, widths)
    embed, sides = config["time_embedding_dim"] or 4 * widths[0], size_of(file, config)
    head = config["attention_head_dim"]
    return {
        "_target_": "diffusion.networks.UNet",
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "res_blocks": config["layers_per_block"],
        "middle": ["res", "atn", "res"] if config["add_attention"] else ["res", "res"],
        "attention": [min(sides) // 2**level for level in attended],
        **({"heads": 1} if head is None else {"head_channels": head}),
        "dropout": config["dropout"],
        "scale_shift": shifted,
        "resample_in_resblock": resampling == "resnet",
        "embedding_channels": None if embed == 4 * channels else embed,
        "details": {
            "_target_": DETAILS,
            "groups": groups,
            "eps": config["norm_eps"],
            "shift": config["freq_shift"],
            "cosines_first": config["flip_sin_to_cos"],
            "time_channels": None if whole else widths[0],
            "symmetric": config["downsample_padding"] == 1,
        },
    }


def size_of(file: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """The (height, width) of a configuration's pictures. Raises UserError for none, and for sides that do not halve as often as they are
    halved."""
    if config["sample_size"] is None:
        raise UserError(f"{file} has sample_size=null, and the size of its pictures is needed: write it there.")
    sides, levels = height_and_width(config["sample_size"]), len(config["block_out_channels"])
    if any(side % 2 ** (levels - 1) for side in sides):
        raise UserError(f"{file} has sample_size={config['sample_size']}, which {levels} block_out_channels do not halve to whole sides.")
    return sides


def blocks_of(file: Path, config: Mapping[str, Any]) -> tuple[str, list[int]]:
    """(how it resamples, by "conv" or by "resnet"; the levels that have attention) by a configuration's types of blocks.

    Raises UserError for types that are not known, and for ways down and up that are not alike."""
    ways, found = {"down_block_types": (DOWN, "downsample_type"), "up_block_types": (UP, "upsample_type")}, {}
    levels = len(config["block_out_channels"])
    for key, (types, otherwise) in ways.items():
        if not len(config[key]) == levels > 0:
            raise UserError(f"{file} has {len(config[key])} {key} for {levels} block_out_channels: as many are needed, and at least one.")
        names = [str(name).removeprefix("UNetRes") for name in config[key]]
        if unknown := [name for name in names if name not in types]:
            raise UserError(f"{file} has {brief(unknown[0])} among its {key}, and only {', '.join(types)} can be read.")
        kinds = {types[name] or config[otherwise] for name in names[:-1]}  # the last block of a way does not resample
        looking = [level for level, name in enumerate(names if types is DOWN else names[::-1]) if types[name] is None]
        found[key] = kinds, looking
    (down, attended), (up, above) = found.values()
    kinds = down | up or {"conv"}
    if len(kinds) > 1 or not kinds <= set(PLAIN_BLOCKS):
        raise UserError(f"{file} resamples by {' and '.join(sorted(map(str, kinds)))} (downsample_type, upsample_type); one is read.")
    if attended != above:
        raise UserError(f"{file} has attention at other levels of its down_block_types than of its up_block_types; alike can be read.")
    return kinds.pop(), attended


def config_of(network: UNet, settings: Mapping[str, Any], size: tuple[int, int], null_class: bool) -> dict[str, Any]:
    """The configuration of the UNet2DModel that computes what this U-Net does, whose own settings, all of them, are these. Its classes
    have the last row, that of no class, only where `null_class` says that it was learned.

    Raises UserError for what diffusers cannot express, by its name."""
    required_of_ours(settings)
    norms = {(norm.num_groups, norm.eps) for norm in norms_of(network)}
    if len(norms) > 1:
        groups = sorted(groups for groups, _ in norms)
        raise UserError(
            f"The norms of this network have {', '.join(map(str, groups))} groups, by their widths, and diffusers has one number for all: "
            f"train one with '+network.details={{_target_:{DETAILS},groups:{groups[0]}}}'."
        )
    ((groups, eps),), details = norms, settings["details"]
    resampling = "resnet" if settings["resample_in_resblock"] else "conv"
    down, up = PLAIN_BLOCKS[resampling]
    resolutions = [min(size) // 2**level for level in range(len(network.widths))]
    looks = [resolution in settings["attention"] for resolution in resolutions]
    return {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": network.stem.in_channels,
        "out_channels": network.out.out_channels,
        "time_embedding_dim": network.time.out.out_features,
        "freq_shift": int(details.shift),
        "flip_sin_to_cos": details.cosines_first,
        "down_block_types": ["AttnDownBlock2D" if look else down for look in looks],
        "up_block_types": ["AttnUpBlock2D" if look else up for look in looks[::-1]],
        "block_out_channels": network.widths,
        "layers_per_block": settings["res_blocks"],
        "downsample_padding": int(details.symmetric),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "dropout": settings["dropout"],
        "attention_head_dim": head_width(network),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": eps,
        "resnet_time_scale_shift": "scale_shift" if settings["scale_shift"] else "default",
        "add_attention": "atn" in settings["middle"],
        "num_class_embeds": None if network.classes is None else network.classes.num_embeddings - (not null_class),
    }


def required_of_ours(settings: Mapping[str, Any]) -> None:
    """Raises UserError for the first setting of our U-Net that UNet2DModel has no counterpart of."""
    details = settings["details"]
    first = settings["channels"] * settings["multipliers"][0]
    plain = {
        "block": (["res", "atn"],),
        "middle": (["res", "atn", "res"], ["res", "res"]),
        "context_channels": (0,),
        **dict.fromkeys(("skip_rescale", "fir", "project_skip", "attention_once", "input_pyramid"), (False,)),
        "fourier_scale": (None,),
    }
    found = {key: list(value) if isinstance(value := settings[key], list | tuple) else value for key in plain}
    plain |= {"details.shift": (0, 1), "details.class_first": (False,), "details.time_channels": (first,)}
    plain |= {"details.label_scale": (1.0,), "details.stem_channels": (None, first)}
    found |= {f"details.{key}": getattr(details, key) for key in ("shift", "class_first", "label_scale", "stem_channels")}
    found["details.time_channels"] = details.time_channels or settings["channels"]
    for key, values in plain.items():
        if found[key] not in values:
            usual = " or ".join(str(value) for value in values)
            raise UserError(f"diffusers' {NAME} has no counterpart of network.{key}={found[key]}, only of {usual}.")


def norms_of(network: UNet) -> list[Any]:
    """All the norms of a U-Net."""
    return [module for module in network.modules() if hasattr(module, "num_groups")]


def head_width(network: UNet) -> int | None:
    """The width of each head, which diffusers says; None where each attention has one head. Raises UserError where widths differ."""
    layers: list[Any] = [module for module in network.modules() if isinstance(module, SelfAttention)]
    widths: set[int] = {layer.out.in_features // layer.heads for layer in layers}
    if len(widths) > 1 and any(layer.heads > 1 for layer in layers):
        raise UserError(
            f"The heads of this network have {', '.join(map(str, sorted(widths)))} channels, and diffusers has one width for all: "
            "train one with network.head_channels, or with network.heads=1."
        )
    return None if all(layer.heads == 1 for layer in layers) else widths.pop()


def names_of(network: UNet) -> dict[str, tuple[str, ...]]:
    """For each of our tensors the name of diffusers'; of a query, key and value in one, three names."""
    prefixes = dict(_layers(network))
    found = {}
    for name in network.state_dict():
        ours = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))
        found[name] = tuple(f"{theirs}{name.removeprefix(ours)}" for theirs in prefixes[ours])
    return found


Place = tuple[str, tuple[str, ...]]  # the prefix of a layer's tensors with us, and with diffusers


def _layers(network: UNet) -> Iterator[Place]:
    yield "time.hidden", ("time_embedding.linear_1",)
    yield "time.out", ("time_embedding.linear_2",)
    yield "classes", ("class_embedding",)
    yield "stem", ("conv_in",)
    yield "norm", ("conv_norm_out",)
    yield "out", ("conv_out",)
    yield from _chain(network.middle, "middle", "mid_block", 0)
    levels = len(network.widths)
    layers, level = -1, 0  # of the way down: each level's, and what halves, which diffusers has in the level above
    for i, block in enumerate(network.down):
        if isinstance(block, Chain):
            layers += 1
            yield from _chain(block, f"down.{i}", f"down_blocks.{level}", layers)
        else:
            yield from _resampling(block, f"down.{i}", f"down_blocks.{level}.downsamplers.0")
            layers, level = -1, level + 1
    each = len(network.up) // levels
    for i, block in enumerate(network.up):
        yield from _chain(block, f"up.{i}", f"up_blocks.{i // each}", i % each, "upsamplers.0")


def _chain(chain: Any, ours: str, theirs: str, layer: int, after: str = "") -> Iterator[Place]:
    """The blocks of a chain: residual blocks and attentions, of which the first is `layer` of a level of diffusers; `after` is what comes
    behind them and resamples."""
    resnets = attentions = layer
    for i, block in enumerate(chain):
        place = f"{ours}.{i}"
        if after and i > 0 and not isinstance(block, SelfAttention):
            yield from _resampling(block, place, f"{theirs}.{after}")
        elif isinstance(block, ResidualBlock):
            yield from _residual(place, f"{theirs}.resnets.{resnets}")
            resnets += 1
        else:
            there = f"{theirs}.attentions.{attentions}"
            yield f"{place}.norm", (f"{there}.group_norm",)
            yield f"{place}.qkv", (f"{there}.to_q", f"{there}.to_k", f"{there}.to_v")
            yield f"{place}.out", (f"{there}.to_out.0",)


def _residual(ours: str, theirs: str) -> Iterator[Place]:
    layers = {"norm": "norm1", "conv": "conv1", "condition.project": "time_emb_proj", "condition.norm": "norm2", "out": "conv2"}
    for mine, other in (layers | {"skip": "conv_shortcut"}).items():
        yield f"{ours}.{mine}", (f"{theirs}.{other}",)


def _resampling(block: Any, ours: str, theirs: str) -> Iterator[Place]:
    if isinstance(block, ResidualBlock):
        yield from _residual(ours, theirs)
    else:
        yield f"{ours}.conv", (f"{theirs}.conv",)
