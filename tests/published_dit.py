"""facebookresearch/DiT's transformer again, from reading its code: the names and shapes of its state dict, and what it computes, as
functions of such a dict. Nothing of diffusion/ is used."""

import math
from dataclasses import dataclass

import torch
from published_openai import dense, layer, sinusoid
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, silu


@dataclass(frozen=True)
class PublishedDiT:
    """The settings, by the names of their arguments; the table of classes has a last row for no class."""

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    num_classes: int = 1000
    learn_sigma: bool = True

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's names and shapes."""
        d, p = self.hidden_size, self.patch_size
        found = {"pos_embed": (1, (self.input_size // p) ** 2, d), "y_embedder.embedding_table.weight": (self.num_classes + 1, d)}
        found |= dict([*layer("x_embedder.proj", d, self.in_channels, p, p), *layer("t_embedder.mlp.0", d, 256)])
        found |= dict([*layer("t_embedder.mlp.2", d, d), *layer("final_layer.linear", p * p * self.out_channels, d)])
        found |= dict(layer("final_layer.adaLN_modulation.1", 2 * d, d))
        for i in range(self.depth):
            found |= dict([*layer(f"blocks.{i}.attn.qkv", 3 * d, d), *layer(f"blocks.{i}.attn.proj", d, d)])
            found |= dict([*layer(f"blocks.{i}.mlp.fc1", 4 * d, d), *layer(f"blocks.{i}.mlp.fc2", d, 4 * d)])
            found |= dict(layer(f"blocks.{i}.adaLN_modulation.1", 6 * d, d))
        return found

    def positions(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """pos_embed: of each patch, row by row, sines and cosines of its column, then of its row."""
        side, n = self.input_size // self.patch_size, self.hidden_size // 4
        angle = torch.arange(side, dtype=torch.float64)[:, None] / 10_000 ** (torch.arange(n, dtype=torch.float64) / n)
        line = torch.cat([angle.sin(), angle.cos()], 1)
        table = [torch.cat([line[column], line[row]]) for row in range(side) for column in range(side)]
        return torch.stack(table)[None].to(dtype)

    def __call__(self, w: dict[str, Tensor], x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
        """[b, out_channels, h, w]."""
        p, side = self.patch_size, self.input_size // self.patch_size
        tokens = conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=p).flatten(2).mT + w["pos_embed"]
        c = dense(w, "t_embedder.mlp.2", silu(dense(w, "t_embedder.mlp.0", sinusoid(label, 256))))
        c = silu(c + w["y_embedder.embedding_table.weight"][classes])
        for i in range(self.depth):
            name = f"blocks.{i}"
            shift1, scale1, gate1, shift2, scale2, gate2 = dense(w, f"{name}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
            tokens = tokens + gate1 * self.attention(w, name, plain_norm(tokens) * (1 + scale1) + shift1)
            h = gelu(dense(w, f"{name}.mlp.fc1", plain_norm(tokens) * (1 + scale2) + shift2), approximate="tanh")
            tokens = tokens + gate2 * dense(w, f"{name}.mlp.fc2", h)
        shift, scale = dense(w, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
        out = dense(w, "final_layer.linear", plain_norm(tokens) * (1 + scale) + shift)
        return torch.einsum("bhwpqc->bchpwq", out.reshape(-1, side, side, p, p, self.out_channels)).reshape(len(x), -1, side * p, side * p)

    def attention(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = dense(w, f"{name}.attn.qkv", x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        looks = (q @ k.mT / math.sqrt(d // self.num_heads)).softmax(-1)
        return dense(w, f"{name}.attn.proj", (looks @ v).transpose(1, 2).reshape(b, n, d))


def plain_norm(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6)
