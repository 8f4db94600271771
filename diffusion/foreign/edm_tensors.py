"""The tensors of EDM's U-Nets: what they say of the network, and our names and shapes of them."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.support.errors import UserError

BLOCK = {
    **{
        "norm0": "0.norm",
        "conv0": "0.conv",
        "affine": "0.condition.project",
        "norm1": "0.condition.norm",
        "conv1": "0.out",
        "skip": "0.skip",
    },
    **{"norm2": "1.norm", "qkv": "1.qkv", "proj": "1.out"},
}
TOPMOST = {"map_layer0": "time.hidden", "map_layer1": "time.out", "out_norm": "norm", "out_conv": "out"}
KINDS = r"conv|down|up|in0|in1|block\d+|aux_residual|aux_norm|aux_conv"
PART = re.compile(rf"(enc|dec)\.(?P<side>\d+)x(?P=side)_({KINDS})(?:\.({'|'.join(BLOCK)}))?\.(weight|bias|resample_filter)")
FILTERS = {2: (1.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0)}


class Found(NamedTuple):
    """What the tensors say of the network."""

    sides: list[int]  # of each level's pictures, the largest first
    widths: list[int]
    blocks: int
    attention: list[int]
    song: bool
    fir: bool
    pyramid: bool
    fourier: bool
    stem: int
    in_channels: int
    out_channels: int
    num_classes: int
    features: int
    embedding: int


def found_in_tensors(tensors: Mapping[str, Tensor]) -> Found:
    """What the tensors say."""
    sides = sorted({int(found[2]) for name in tensors if (found := PART.fullmatch(name))}, reverse=True)
    top = f"{sides[0]}x{sides[0]}"
    blocks = len({name for name in tensors if re.fullmatch(rf"enc\.{top}_block\d+\.conv1\.weight", name)})
    firsts = [f"enc.{side}x{side}_block0" for side in sides]
    last = "out_conv" if "out_conv.weight" in tensors else f"dec.{top}_aux_conv"
    filters = [tensor for name, tensor in tensors.items() if name.endswith("resample_filter")]
    label = tensors.get("map_label.weight")
    return Found(
        sides,
        [tensors[f"{first}.conv1.weight"].shape[0] for first in firsts if f"{first}.conv1.weight" in tensors],
        blocks,
        [side for side, first in zip(sides, firsts, strict=True) if f"{first}.qkv.weight" in tensors],
        last != "out_conv",
        bool(filters) and filters[0].shape[-1] == 4,
        any("_aux_residual." in name for name in tensors),
        "map_noise.freqs" in tensors,
        tensors[f"enc.{top}_conv.weight"].shape[0],
        tensors[f"enc.{top}_conv.weight"].shape[1],
        tensors[f"{last}.weight"].shape[0],
        0 if label is None else label.shape[1],
        tensors["map_layer0.weight"].shape[1],
        tensors["map_layer0.weight"].shape[0],
    )


def check_tensors(tensors: Mapping[str, Tensor], found: Found) -> None:
    """Raises UserError unless each resampling is by the one filter that the network here has, and the classes' layer is whole."""
    if ("map_label.bias" in tensors) != (found.song and found.num_classes > 0):
        raise UserError(
            "map_label has a weight and a bias in SongUNet, and in DhariwalUNet a weight alone; one of them is missing or too much."
        )
    line = torch.tensor(FILTERS[4 if found.fir else 2])
    usual = (torch.outer(line, line) / line.sum() ** 2)[None, None]
    for name, tensor in tensors.items():
        if name.endswith("resample_filter") and not (tensor.shape == usual.shape and torch.allclose(tensor.float(), usual)):
            raise UserError(f"{name} is another filter than {list(FILTERS[4 if found.fir else 2])}, which the network here resamples with.")
    if found.pyramid and not found.fir:
        raise UserError("A residual encoder with the filter [1, 1] is not read: the network here has it with [1, 3, 3, 1].")


def weights_of(tensors: Mapping[str, Tensor], found: Found) -> dict[str, Tensor]:
    """Our tensors by our names. A class's row is what the linear layer `map_label` makes of its one-hot vector, and the null class's what
    it makes of zeros, as their code does without a class. Raises UserError if two tensors have one place."""
    places, weights = places_of(found), {}
    for name, tensor in tensors.items():
        whole = PART.fullmatch(name)
        layer, _, kind = name.rpartition(".")
        if name == "map_noise.freqs":
            weights["time.bits"] = tensor.float().view(torch.int32)
        elif name == "map_label.weight":
            weights["classes.weight"] = table_of(tensor.float(), tensors.get("map_label.bias"))
        elif layer in TOPMOST:
            weights[f"{TOPMOST[layer]}.{kind}"] = tensor.float()
        elif whole and kind != "resample_filter":
            if (place := placed(whole, places)) in weights:
                raise UserError(f"{name} is in a place that another tensor has; the layout is another than EDM's.")
            weights[place] = by_channels(tensor.float(), whole[4], found)
    return weights


def table_of(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[num_classes + 1, width]: SongUNet's `map_label` has a bias and takes vectors of length sqrt(num_classes), DhariwalUNet's neither."""
    zeros = weight.new_zeros(len(weight)) if bias is None else bias.float()
    rows = weight.T if bias is None else weight.T * math.sqrt(weight.shape[1]) + zeros
    return torch.cat([rows, zeros[None]])


def places_of(found: Found) -> dict[str, str]:
    """Our place of each block of theirs, "enc.32x32_block0" -> "down.0": theirs without the pyramid's, in their order, the stem first."""
    places, down, up = {}, 0, 0
    for level, side in enumerate(found.sides):
        name = f"enc.{side}x{side}_"
        places[f"{name}aux_residual"] = f"pyramid.{level - 1}.conv"
        for kind in (["down"] if level else []) + [f"block{i}" for i in range(found.blocks)]:
            places[name + kind] = f"down.{down}"
            down += 1
    for level, side in reversed(list(enumerate(found.sides))):
        if level < len(found.sides) - 1:  # what doubles the sides ends the level before
            looks = found.sides[level + 1] in found.attention
            places[f"dec.{side}x{side}_up"] = f"up.{up - 1}.{1 + looks}"
        for i in range(found.blocks + 1):
            places[f"dec.{side}x{side}_block{i}"] = f"up.{up}"
            up += 1
    return places


def placed(whole: re.Match[str], places: Mapping[str, str]) -> str:
    """Our name of a tensor of a block: its residual block and its attention are two of ours."""
    part, side, kind, layer, last = whole.groups()
    ends = {"conv": "stem", "aux_norm": "norm", "aux_conv": "out"}
    if kind in ends:
        return f"{ends[kind]}.{last}"
    which, _, rest = BLOCK[layer].partition(".") if layer else ("", "", "")
    if kind in ("in0", "in1"):
        return f"middle.{2 if kind == 'in1' else which}.{rest}.{last}"
    place = places[f"{part}.{side}x{side}_{kind}"]
    if not layer:  # the pyramid's
        return f"{place}.{last}"
    return f"{place}.{rest}.{last}" if kind in ("up", "down") else f"{place}.{which}.{rest}.{last}"


def by_channels(tensor: Tensor, layer: str | None, found: Found) -> Tensor:
    """q, k and v above each other, where theirs stand channel by channel, and linear layers where theirs are convolutions of one pixel."""
    if layer not in ("qkv", "proj"):
        return tensor
    flat = tensor.flatten(1) if tensor.ndim > 1 else tensor
    return flat.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if layer == "qkv" else flat
