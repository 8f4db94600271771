"""The transformer of facebookresearch/DiT (Peebles & Xie 2023) as ours, in latents of Stable Diffusion's autoencoder or in pixels."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.foreign.converted import USUAL, Converted, configured
from diffusion.foreign.files import read_json, typed
from diffusion.foreign.flags import Flags
from diffusion.foreign.layouts import Layout, Weights, sha256_of
from diffusion.networks.dit import positions
from diffusion.support.errors import UserError
from diffusion.support.ranges import Few

# The flags of their sample.py; `vae` is here the folder of the autoencoder, and `num_heads` of a width that none of their models has.
SAMPLING: Mapping[str, Any] = {
    **{"model": "", "image_size": 256, "num_classes": 1000, "vae": "", "num_heads": 0, "cfg_scale": 4.0, "num_sampling_steps": 250},
}
SCALE = 0.18215  # of Stable Diffusion's latents, as their code has it
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
SIZES = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}
AROUND = {
    **{"x_embedder.proj": "stem", "t_embedder.mlp.0": "time.hidden", "t_embedder.mlp.2": "time.out"},
    **{"final_layer.linear": "out", "final_layer.adaLN_modulation.1": "modulate"},
}
WITHIN = {"attn.qkv": "qkv", "attn.proj": "project", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "adaLN_modulation.1": "modulate"}
IN_BLOCK = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, WITHIN))})\.(weight|bias)")
TABLE, POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"


def read_dit(published: Weights) -> Converted:
    """The model in a file of theirs. Raises UserError for flags that the tensors contradict, positions that were trained, and latents whose
    autoencoder is not said."""
    flags, tensors = Flags(published.flags, SAMPLING, "DiT's sample.py"), published.tensors
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    side = patch * round(tensors[POSITIONS].shape[1] ** 0.5)
    depth = 1 + max(int(found[1]) for name in tensors if (found := IN_BLOCK.fullmatch(name)))
    classes = count_classes(flags, len(tensors[TABLE]))
    learned = tensors["final_layer.linear.weight"].shape[0] == 2 * patch**2 * channels
    known = next((f"DiT-{size}/{patch}" for size, said in SIZES.items() if said == (width, depth)), "none of theirs")
    flags.agree("model", known)
    check_positions(tensors[POSITIONS], side // patch, width)
    settings = {"patch": patch, "width": width, "depth": depth, "heads": heads_of(flags, width), "shift": 0.0, "cosines_first": True}
    space, shape = space_of(flags, channels, side)
    config = configured(
        {"_target_": "diffusion.networks.DiT", **settings},
        shape,
        {**ways_of_dit(flags, learned, latent=bool(space)), **space},
        name=published.path.stem,
        num_classes=classes,
        null_class=len(tensors[TABLE]) > classes,
        learned_variance=learned,
    )
    weights = dict(our_tensor(name, tensor.float(), classes) for name, tensor in tensors.items() if name != POSITIONS)
    said = {key: Path(word).name if key == "vae" else word for key, word in flags.said.items()}  # no place here: it is given away
    origin = {"file": published.path.name, "sha256": sha256_of(published.path), "layout": DIT.name, "flags": said}
    note = "Guidance takes all channels here; DiT's sample.py guides the first three of four."
    return Converted(config, weights, origin | {"notes": [note, *flags.assumed("cfg_scale")]})


def count_classes(flags: Flags, rows: int) -> int:
    """The number of classes: that of the rows, of which the last is the null class, unless the flag says that there is none."""
    said = flags["num_classes"] if "num_classes" in flags.said else rows - 1
    if said not in (rows, rows - 1):
        raise UserError(f"--num_classes {said} contradicts the tensors, whose table of classes has {rows} rows, the last of no class.")
    return said


def heads_of(flags: Flags, width: int) -> int:
    """The heads, of which the tensors say nothing: what the flag says, or what their models of this width have. Raises UserError for
    another width whose heads are not said, and for heads that do not divide it."""
    heads = flags["num_heads"] or HEADS.get(width, 0)
    if heads < 1 or width % heads:
        raise UserError(f"The tensors do not say how many heads a width of {width} has: say --num_heads, a number that divides it.")
    return heads


def check_positions(table: Tensor, side: int, width: int) -> None:
    """Raises UserError unless the table of positions is the sines and cosines that ours is made of, or that rounded to half precision."""
    if table.shape != (1, side**2, width) or (table[0].float() - positions(side, side, width)).abs().max() > 2e-3:
        raise UserError(
            f"{POSITIONS} is not the table of sines and cosines of a square of patches; positions of another kind are not read."
        )


def space_of(flags: Flags, channels: int, side: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """(the group `codec`, none for pixels, the shape of a picture). Raises UserError for latents whose autoencoder is not said, or is one
    of latents with other channels."""
    if not flags["vae"]:
        if channels not in (1, 3):
            raise UserError(
                f"This network works in latents of {channels} channels: say --vae FOLDER, that of their autoencoder in diffusers' format "
                "(stabilityai/sd-vae-ft-mse)."
            )
        flags.agree("image_size", side)
        return {}, (side, side, channels)
    folder = Path(flags["vae"]).absolute()
    settings = read_json(folder / "config.json")
    typed(folder / "config.json", settings, {"block_out_channels": list[Few], "latent_channels": Few})
    depth, there = len(settings.get("block_out_channels") or [0]), settings.get("latent_channels")
    if there != channels:
        raise UserError(f"--vae {folder} makes latents of {there} channels, and this network takes {channels}.")
    pixels = side * 2 ** (depth - 1)
    flags.agree("image_size", pixels)
    shape = (pixels, pixels, 3)
    scale = {"mean": [0.0] * channels, "std": [1 / SCALE] * channels}
    codec = {"_target_": "diffusion.latents.codec", "ckpt": str(folder), "data_shape": list(shape), **scale}
    return {"codec": {**codec, "weights": None, "cached": True, "slices": 4}, "sample_batch_size": 16}, shape


def ways_of_dit(flags: Flags, learned: bool, latent: bool) -> dict[str, Any]:
    """How they sample: epsilon, linear betas, 250 of 1000 steps, classifier-free guidance, and nothing clipped in latents. Raises UserError
    for a number of steps that there are not."""
    if not 1 <= flags["num_sampling_steps"] <= 1000:
        raise UserError(f"--num_sampling_steps {flags['num_sampling_steps']} should be a number of steps from 1 to 1000.")
    guidance = {**USUAL["guidance"], "cfg": {**USUAL["guidance"]["cfg"], "scale": flags["cfg_scale"]}}
    return {
        "schedule": {"_target_": "diffusion.schedules.Linear", "num_timesteps": 1000},
        "parameterization": {"_target_": "diffusion.parameterization.Epsilon"},
        "sampler": {"_target_": "diffusion.samplers.DDPM", "variance": "learned" if learned else "fixed_large"},
        "grid": {"_target_": "diffusion.grids.Linspace", "steps": flags["num_sampling_steps"]},
        "guidance": {"cfg": guidance["cfg"]} if latent else guidance,
    }


def our_tensor(name: str, tensor: Tensor, classes: int) -> tuple[str, Tensor]:
    """(our name, our tensor): scales stand before shifts here, and a table of classes always has a row of no class."""
    layer, _, kind = name.rpartition(".")
    if name == TABLE:
        return "classes.weight", tensor if len(tensor) > classes else torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
    if layer == "final_layer.adaLN_modulation.1":
        return f"modulate.{kind}", reordered(tensor, (1, 0))
    if layer in AROUND:
        return f"{AROUND[layer]}.{kind}", tensor
    found = IN_BLOCK.fullmatch(name)
    assert found is not None  # the layout's pattern has matched
    number, inner, kind = found.groups()
    return f"blocks.{number}.{WITHIN[inner]}.{kind}", reordered(tensor, (1, 0, 2, 4, 3, 5)) if "adaLN" in inner else tensor


def reordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The equal parts of a layer's outputs in another order."""
    parts = tensor.chunk(len(order))
    return torch.cat([parts[i] for i in order])


DIT = Layout(
    "DiT's transformer",
    frozenset({TABLE, POSITIONS, "x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.attn.qkv.weight"}),
    re.compile(rf"{re.escape(TABLE)}|{POSITIONS}|({'|'.join(map(re.escape, AROUND))})\.(weight|bias)|{IN_BLOCK.pattern}"),
    read_dit,
)
