"""The diffusion transformer."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from diffusion.networks.attention import Look, attend, count_heads
from diffusion.networks.blocks import zero
from diffusion.networks.embedding import ConditionedNetwork, Given, TimeEmbedding
from diffusion.networks.recompute import through
from diffusion.support.ranges import Few, Share, Some, require
from diffusion.support.sizes import height_and_width


class DiT(ConditionedNetwork):
    """F(x_t, label, cond): a transformer over patches of the image (Peebles & Xie 2023, 2212.09748, adaLN-Zero).

    The four sizes of their table 1, (depth, width, heads): S (12, 384, 6), B (12, 768, 12), L (24, 1024, 16), XL (28, 1152, 16); patches
    of 2, 4 or 8 pixels. With context_channels each block looks at a context sequence between its attention and its perceptron (Chen
    et al. 2024, 2310.00426, sec. 2.3).

    The table of positions is fixed, so images of another size than image_size are accepted too: a table is made for their number of
    patches, counted from the same corner. The network may do poorly at positions that it never saw in training.

    Args:
        in_channels: channels of x_t.
        out_channels: channels of the output; twice in_channels where a variance is learned too.
        image_size: the side of square x_t, or [height, width], in pixels.
        patch: height and width of a patch in pixels.
        width: channels of a token; a multiple of 4 and of heads.
        depth: number of blocks.
        heads: heads of each attention.
        num_classes: number of classes, to which a learned null class is added; 0 is a network without classes.
        context_channels: width of the vectors of a context sequence; 0 is a network without a context.
        pooled: the context's first vector is added to the time embedding too.
        checkpointing: keep only each block's input for the gradients, and compute the rest again: less memory, a third more time.
        shift, cosines_first: of the time's sinusoid, see `sinusoidal`; the authors' code has 0 and true.

    Raises:
        ValueError: if the sides of image_size are not multiples of patch, or width not of 4 and of heads.
    """

    position: Tensor

    def __init__(
        self,
        in_channels: Few = 4,
        out_channels: Few = 4,
        image_size: Few | Sequence[Few] = 32,
        patch: Few = 2,
        width: Few = 384,
        depth: Few = 12,
        heads: Few = 6,
        num_classes: Some = 0,
        context_channels: Some = 0,
        pooled: bool = False,
        checkpointing: bool = False,
        shift: Share = 1.0,
        cosines_first: bool = False,
    ) -> None:
        require(self, locals())
        grid = patches(*height_and_width(image_size), patch)
        if width % 4:
            raise ValueError(f"width {width} is not a multiple of 4, which sines and cosines of two coordinates need.")
        super().__init__(TimeEmbedding(256, width, shift, cosines_first), width, num_classes, context_channels, pooled)
        self.grid, self.patch, self.checkpointing = grid, patch, checkpointing
        self.stem = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.register_buffer("position", positions(*grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, context_channels) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * out_channels)
        self._initialise()

    def forward(self, x_t: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """x_t [b, in_channels, h, w], label [b], cond -> [b, out_channels, h, w]: see `ConditionedNetwork`.

        Raises ValueError if h or w is not a multiple of patch."""
        height, width = x_t.shape[-2:]
        rows, columns = patches(height, width, self.patch)
        given = self.given(label, cond)
        x = self.stem(x_t).flatten(2).transpose(1, 2)
        x = x + self._position(rows, columns, x)
        for block in self.blocks:
            x = through(self.checkpointing, block, x, given)
        scale, shift = self.modulate(given.embedding)[:, None].chunk(2, dim=-1)
        return self._image(self.out(norm(x) * (1 + scale) + shift), rows)

    def _position(self, rows: int, columns: int, x: Tensor) -> Tensor:
        """The table of positions in the type of x: the stored one for images of image_size, one that is kept for another size, whose way
        to a GPU would be waited for in each call."""
        if (rows, columns) == self.grid:
            return self.position.to(x)
        return elsewhere(rows, columns, self.position.shape[1], x.dtype, x.device)

    def _image(self, tokens: Tensor, rows: int) -> Tensor:
        """[b, rows columns, p p c] -> [b, c, rows p, columns p]."""
        pixels = tokens.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (rows, -1))
        # row, column, row in it, column in it, channel -> channel, row, row in it, column, column in it
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _initialise(self) -> None:
        """As the authors do: Xavier-uniform layers, biases 0, embeddings of deviation 0.02, and 0 where a branch or the output ends."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                nn.init.zeros_(layer.bias) if layer.bias is not None else None
        tables: list[nn.Linear | nn.Embedding] = [self.time.hidden, self.time.out, *([self.classes] if self.classes else [])]
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        for last in [self.modulate, self.out, *(end for block in self.modules() if isinstance(block, Block) for end in block.ends())]:
            zero(last)


class Block(nn.Module):
    """x + g1 attention(LN(x) (1 + s1) + b1), then x + g2 MLP(LN(x) (1 + s2) + b2), [s1, b1, g1, s2, b2, g2] = W e (adaLN-Zero, fig. 3)."""

    def __init__(self, width: Few, heads: Few, context_channels: Some) -> None:
        super().__init__()
        self.heads = count_heads(width, heads)
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.look = Look(width, context_channels, self.heads) if context_channels else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def ends(self) -> list[nn.Module]:
        """The layers that start at 0, so that the block starts as the identity."""
        return [self.modulate, *([self.look.out] if self.look else [])]

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """x [b, n, c]."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(given.embedding)[:, None].chunk(6, dim=-1)
        h = norm(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        x = x + gate1 * self.project(attend(q, k, v, self.heads))
        if self.look is not None:
            x = x + self.look(x, given.context)
        return x + gate2 * self.mlp(norm(x) * (1 + scale2) + shift2)


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the channels, without weights: adaLN brings them."""
    return layer_norm(x, x.shape[-1:], eps=1e-6)


def patches(height: int, width: int, patch: int) -> tuple[int, int]:
    """The rows and columns of patches of an image. Raises ValueError if they do not come out even."""
    if height % patch or width % patch:
        raise ValueError(f"{height} x {width} pixels do not divide into patches of {patch}: use another patch or another image size.")
    return height // patch, width // patch


@lru_cache(maxsize=16)
def elsewhere(rows: int, columns: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`positions` of this type on this device."""
    with torch.inference_mode(False):
        return positions(rows, columns, width).to(device, dtype)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of each patch's column and row, [rows columns, width], row by row: MAE's (He et al. 2022), which DiT uses.

    omega_i = 10000^(-i / n), i = 0 .. n - 1, n = width / 4; a column's sines and cosines stand before a row's."""
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [rows or columns, width / 2]
    across, down = line[None, :columns].expand(rows, -1, -1), line[:rows, None].expand(-1, columns, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1).float()
