"""diffusers' networks as networks of ours."""

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from diffusion.foreign.files import pretrained, required
from diffusion.support.errors import UserError

# What other kinds of models have there: SDXL, upscalers, latent consistency models, image prompts.
UNUSUAL = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type")


class ConditionalUNet(nn.Module):
    """diffusers' UNet2DConditionModel as `network(x, label, cond)`: the label is its time step, cond [b, n, context_channels] its context.

    Where its configuration asks for `upcast_attention`, attention is computed in float32 whatever the rest is computed in."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet: Any = unet
        self.context_channels: int = unet.config.cross_attention_dim
        if unet.config.upcast_attention:
            self.unet.set_attn_processor(UpcastAttention())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a folder in diffusers' format. Raises UserError as `pretrained` does, and for a kind that is told more than a text."""
        unet: Any = pretrained("diffusers", "UNet2DConditionModel", folder)
        required(folder / "config.json", dict(unet.config), dict.fromkeys(UNUSUAL, (None,)))
        return cls(unet)

    def forward(self, x: Tensor, label: Tensor, cond: Tensor) -> Tensor:
        """x [b, c, h, w], label [b], cond [b, n, d] -> [b, c, h, w] of the weights' type."""
        dtype = self.unet.dtype
        return self.unet(x.to(dtype), label, encoder_hidden_states=cond.to(dtype), return_dict=False)[0]


class UpcastAttention:
    """softmax(q k^T / sqrt(d)) v of diffusers' attention layers, by torch's fused kernel, in float32 also under autocast: Stable Diffusion
    2.x has products q k^T beyond the range of float16."""

    def __call__(self, layer: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None) -> Tensor:
        """x [b, n, d] of a layer without norms of its own, a context [b, m, e] or None for x itself -> [b, n, d]. No mask is given here."""
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            project(rows).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project, rows in ((layer.to_q, x), (layer.to_k, context), (layer.to_v, context))
        )
        precise = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            out = scaled_dot_product_attention(q.to(precise), k.to(precise), v.to(precise))
        out = out.transpose(1, 2).flatten(-2).to(q.dtype)
        for module in layer.to_out:  # a projection and its dropout
            out = module(out)
        return out / layer.rescale_output_factor


class ForeignAutoencoder(nn.Module):
    """diffusers' AutoencoderKL as an autoencoder of ours: `moments` of the posterior N(mean, diag e^logvar), and `decode`.

    `scale` and `shift`, each a number, say which latents a diffusion model works on: x_0 = (z - shift) scale."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae
        config = vae.config
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.latent_channels: int = config.latent_channels
        self.scale, self.shift = float(config.scaling_factor), float(config.shift_factor or 0.0)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a folder in diffusers' format. Raises UserError as `pretrained` does, and for a scale that is none."""
        vae: Any = pretrained("diffusers", "AutoencoderKL", folder)
        if not isinstance(scale := vae.config.scaling_factor, int | float) or not 0 < scale < math.inf:
            raise UserError(f"{folder / 'config.json'} has scaling_factor={scale}, and latents are multiplied by a number above 0.")
        return cls(vae)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), each [b, z, ceil(h/f), ceil(w/f)], of pictures x [b, c, h, w]; logvar between -30 and 20. Sides that f does not
        divide are continued at the right and below by their last pixels."""
        right, below = (-side % self.factor for side in (x.shape[-1], x.shape[-2]))
        posterior = self.vae.encode(pad(x, (0, right, 0, below), mode="replicate")).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, z: Tensor) -> Tensor:
        """The pictures [b, c, f h, f w] of latents z [b, z, h, w]."""
        return self.vae.decode(z, return_dict=False)[0]
