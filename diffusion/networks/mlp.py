"""A perceptron for vectors."""

from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from diffusion.networks.blocks import zero
from diffusion.networks.embedding import ConditionedNetwork, Given, TimeEmbedding
from diffusion.support.ranges import Few, Share, Some, require


class MLP(ConditionedNetwork):
    """F(x_t, label, cond) for vectors: residual blocks that see the time and the class by scale and shift, as a U-Net's do.

    Linear to `width`, `depth` blocks, and a conditioned norm, SiLU and a linear layer that starts at 0.

    Args:
        in_channels: length d of x_t.
        out_channels: length of the output; twice in_channels where a variance is learned too.
        num_classes: number of classes, to which a learned null class is added; 0 is a network without classes.
        width: channels of the hidden vectors and of the time and class embedding; even and at least 4.
        depth: number of blocks.
        dropout: dropout probability in the blocks.

    Raises:
        ValueError: if width is odd or below 4, or depth negative.
    """

    def __init__(
        self,
        in_channels: Few = 2,
        out_channels: Few = 2,
        num_classes: Some = 0,
        width: Few = 256,
        depth: Some = 4,
        dropout: Share = 0.0,
    ) -> None:
        require(self, locals())
        if width % 2 or width < 4:
            raise ValueError(f"width must be even and at least 4, for the time embedding: it is {width}.")
        super().__init__(TimeEmbedding(width, width), width, num_classes)
        self.stem = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(VectorBlock(width, dropout) for _ in range(depth))
        self.norm = VectorNorm(width)
        self.out = zero(nn.Linear(width, out_channels))

    def forward(self, x_t: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """x_t [b, in_channels], label [b], cond -> [b, out_channels]: see `ConditionedNetwork`.

        Raises ValueError if x_t are no vectors of this length."""
        if x_t.ndim != 2 or x_t.shape[1] != self.stem.in_features:
            raise ValueError(
                f"This MLP takes vectors [b, {self.stem.in_features}], and these items are {list(x_t.shape)}: "
                "choose data that are vectors, or a network for pictures, such as a U-Net."
            )
        given, x = self.given(label, cond), self.stem(x_t)
        for block in self.blocks:
            x = block(x, given)
        return self.out(silu(self.norm(x, given)))


class VectorNorm(nn.Module):
    """(1 + scale) LayerNorm(x) + shift, [scale, shift] = W e: the U-Net's scale-shift conditioning for vectors [b, c]."""

    def __init__(self, width: Few) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        scale, shift = self.project(given.embedding).chunk(2, dim=1)
        return layer_norm(x, x.shape[1:]) * (1 + scale) + shift


class VectorBlock(nn.Module):
    """Conditioned norm, SiLU, linear, SiLU, dropout, linear that starts at 0; added to the input: [b, c] -> [b, c]."""

    def __init__(self, width: Few, dropout: Share = 0.0) -> None:
        super().__init__()
        self.norm = VectorNorm(width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = silu(self.hidden(silu(self.norm(x, given))))
        return x + self.out(self.dropout(h))
