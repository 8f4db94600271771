"""The U-Net of openai/improved-diffusion and openai/guided-diffusion again, from reading their code: the names and shapes of its state
dict, and what it computes, as functions of such a dict. Nothing of diffusion/ is used."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv1d, conv2d, embedding, group_norm, interpolate, linear, silu

Part = tuple[str, str, int, int]  # its name in the state dict, what it is, channels in, channels out


def numbers(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights of these shapes, of which no layer is idle and none blows up what goes through it."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        of_norm = len(shape) == 1 and name.endswith(".weight")
        made[name] = (1 + 0.2 * draw if of_norm else draw / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2 * draw).to(dtype)
    return made


def sinusoid(label: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of label * 10000^(-i / n), i = 0 .. n - 1, n = width / 2."""
    n = width // 2
    angle = label[:, None] * 10_000 ** (-torch.arange(n, dtype=label.dtype) / n)
    return torch.cat([angle.cos(), angle.sin()], 1)


@dataclass(frozen=True)
class OpenAI:
    """The settings, by the flags of their scripts; `heads_first` is use_new_attention_order=False."""

    num_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_ds: tuple[int, ...]  # factors by which the sides are smaller where attention stands
    num_heads: int = 4
    num_head_channels: int = -1
    num_classes: int = 0
    out_channels: int = 6
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    heads_first: bool = True

    def parts(self) -> tuple[list[list[Part]], list[Part], list[list[Part]]]:
        """The input blocks, the middle block and the output blocks."""
        widths = [int(self.num_channels * multiple) for multiple in self.channel_mult]
        shrink, grow = ("res-down", "res-up") if self.resblock_updown else ("down", "up")
        down, skips, ch = [[("input_blocks.0.0", "stem", 3, widths[0])]], [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks + (level < len(widths) - 1)):
                name = f"input_blocks.{len(down)}"
                if i == self.num_res_blocks:
                    down.append([(f"{name}.0", shrink, ch, ch)])
                else:
                    down.append(self.layer(name, ch, width, level))
                ch = width
                skips.append(ch)
        middle = [(f"middle_block.{i}", kind, ch, ch) for i, kind in enumerate(("res", "attention", "res"))]
        up: list[list[Part]] = []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                block = self.layer(f"output_blocks.{len(up)}", ch + skips.pop(), width, level)
                ch = width
                if level and i == self.num_res_blocks:
                    block.append((f"output_blocks.{len(up)}.{len(block)}", grow, ch, ch))
                up.append(block)
        return down, middle, up

    def layer(self, name: str, before: int, width: int, level: int) -> list[Part]:
        looks = [(f"{name}.1", "attention", width, width)] if 2**level in self.attention_ds else []
        return [(f"{name}.0", "res", before, width), *looks]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's names and shapes."""
        c, e = self.num_channels, 4 * self.num_channels
        down, middle, up = self.parts()
        found = dict([*layer("time_embed.0", e, c), *layer("time_embed.2", e, e)])
        found |= {"label_emb.weight": (self.num_classes, e)} if self.num_classes else {}
        for name, kind, before, width in (part for block in (*down, middle, *up) for part in block):
            found |= dict(self.layers_of(name, kind, before, width, e))
        last = up[-1][0][3]
        return found | dict([*layer("out.0", last), *layer("out.2", self.out_channels, last, 3, 3)])

    def layers_of(self, name: str, kind: str, before: int, width: int, e: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if kind == "attention":
            yield from [*layer(f"{name}.norm", width), *layer(f"{name}.qkv", 3 * width, width, 1)]
            yield from layer(f"{name}.proj_out", width, width, 1)
        elif kind.startswith("res"):
            yield from [*layer(f"{name}.in_layers.0", before), *layer(f"{name}.in_layers.2", width, before, 3, 3)]
            yield from layer(f"{name}.emb_layers.1", width * (1 + self.use_scale_shift_norm), e)
            yield from [*layer(f"{name}.out_layers.0", width), *layer(f"{name}.out_layers.3", width, width, 3, 3)]
            yield from layer(f"{name}.skip_connection", width, before, 1, 1) if before != width else ()
        else:
            yield from layer(name + {"stem": "", "down": ".op", "up": ".conv"}[kind], width, before, 3, 3)

    def __call__(self, w: dict[str, Tensor], x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """The network's output [b, out_channels, h, w]."""
        down, middle, up = self.parts()
        time = dense(w, "time_embed.2", silu(dense(w, "time_embed.0", sinusoid(label, self.num_channels))))
        e = silu(time if classes is None else time + embedding(classes, w["label_emb.weight"]))
        kept = []
        for block in down:
            for part in block:
                x = self.part(w, part, x, e)
            kept.append(x)
        for part in middle:
            x = self.part(w, part, x, e)
        for block in up:
            x = torch.cat([x, kept.pop()], 1)
            for part in block:
                x = self.part(w, part, x, e)
        return conv(w, "out.2", silu(norm(w, "out.0", x)))

    def part(self, w: dict[str, Tensor], part: Part, x: Tensor, e: Tensor) -> Tensor:
        name, kind, *_ = part
        if kind == "attention":
            return x + self.attention(w, name, x)
        if kind.startswith("res"):
            return self.residual(w, name, x, e, {"res": lambda h: h, "res-down": lambda h: avg_pool2d(h, 2), "res-up": doubled}[kind])
        if kind == "up":
            return conv(w, f"{name}.conv", doubled(x))
        return conv(w, f"{name}.op", x, stride=2) if kind == "down" else conv(w, name, x)

    def residual(self, w, name, x, e, resample) -> Tensor:
        h = conv(w, f"{name}.in_layers.2", resample(silu(norm(w, f"{name}.in_layers.0", x))))
        told = dense(w, f"{name}.emb_layers.1", e)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = told.chunk(2, 1)
            h = norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(w, f"{name}.out_layers.0", h + told)
        x = resample(x)
        skip = conv(w, f"{name}.skip_connection", x, padding=0) if f"{name}.skip_connection.weight" in w else x
        return skip + conv(w, f"{name}.out_layers.3", silu(h))

    def attention(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        b, c, *sides = x.shape
        heads = self.num_heads if self.num_head_channels == -1 else c // self.num_head_channels
        qkv = conv1d(norm(w, f"{name}.norm", x).flatten(2), w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
        if self.heads_first:
            q, k, v = qkv.reshape(b, heads, 3, c // heads, -1).unbind(2)
        else:
            q, k, v = qkv.reshape(b, 3, heads, c // heads, -1).unbind(1)
        looks = torch.einsum("bhcn,bhcm->bhnm", q, k).div(math.sqrt(c // heads)).softmax(-1)
        h = torch.einsum("bhnm,bhcm->bhcn", looks, v).reshape(b, c, -1)
        return conv1d(h, w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"]).reshape(b, c, *sides)


def layer(name: str, *shape: int) -> list[tuple[str, tuple[int, ...]]]:
    """A weight of this shape and its bias."""
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]


def dense(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w: dict[str, Tensor], name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")
