"""A small transformer over the tokens of a text, trained with the network that looks at what it makes of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion.networks.attention import attend, count_heads
from diffusion.support.ranges import Few, Some, require

PADDING = 0  # the token that stands behind a text's own


class TextTransformer(nn.Module):
    """Tokens int64 [b, n], 0 for padding -> vectors [b, n, channels], of which padding's are 0.

    A table of tokens and one of positions, `depth` blocks, a LayerNorm. No token sees padding, so that the vectors of a text do not depend
    on how much of it there is. Each sees all others: the text is there whole before the first image is.

    Args:
        tokens: how many there are, padding counted.
        length: the most tokens of a text.
        channels: width of a vector; a multiple of heads.
        depth: number of blocks.
        heads: heads of each attention.

    Raises:
        ValueError: if channels do not divide into heads.
    """

    def __init__(self, tokens: Few, length: Few = 32, channels: Few = 128, depth: Some = 2, heads: Few = 4) -> None:
        super().__init__()
        require(self, locals())
        self.table = nn.Embedding(tokens, channels)
        self.position = nn.Parameter(torch.empty(length, channels))
        self.blocks = nn.ModuleList(TokenBlock(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        for table in (self.table.weight, self.position):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, n], n <= length -> [b, n, channels]."""
        there = tokens != PADDING
        x = self.table(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, there)
        return self.norm(x) * there[..., None]


class TokenBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)) (Vaswani et al. 2017 with the norms first)."""

    def __init__(self, channels: Few, heads: Few) -> None:
        super().__init__()
        self.heads = count_heads(channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """x [b, n, channels]; there [b, n] bool, the tokens that may be looked at."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.project(attend(q, k, v, self.heads, there[:, None, None]))
        return x + self.mlp(x)


class TextNetwork(nn.Module):
    """network(x, label, cond) where cond is what `encoder` makes a context of: tokens [b, n], or vectors [b, n, d] that it leaves as they
    are. None is the empty text for all, which is `null(x)`, and not the context of zeros that the network alone would take it for."""

    def __init__(self, network: nn.Module, encoder: nn.Module, null: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.encoder, self.null = network, encoder, null

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """x [b, ...], label [b], cond [b, n, ...] or None -> the network's output [b, ...]."""
        return self.network(x, label, self.encoder(self.null(x) if cond is None else cond))
