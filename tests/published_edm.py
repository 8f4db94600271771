"""The two U-Nets of NVlabs/edm, SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), again, from reading their code: the names and shapes of
their state dicts, and what they compute, as functions of such a dict. Nothing of diffusion/ is used."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from published_openai import conv, dense, layer, sinusoid
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, group_norm, silu

Part = tuple[str, str, int, int, bool]  # its name in the state dict, what it is, channels in, channels out, whether it looks


@dataclass(frozen=True)
class EDMNet:
    """The settings, by the names of their arguments; `song` is SongUNet, with the encoder "residual" where `fir` is true."""

    img_resolution: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    label_dim: int = 0
    augment_dim: int = 0
    out_channels: int = 3
    song: bool = True
    fir: bool = False

    @property
    def noise_channels(self) -> int:
        return self.model_channels * (2 if self.song and self.fir else 1)

    @property
    def taps(self) -> Tensor:
        line = torch.tensor([1.0, 3.0, 3.0, 1.0] if self.fir else [1.0, 1.0])
        return (torch.outer(line, line) / line.sum() ** 2)[None, None]

    def parts(self) -> tuple[list[Part], list[Part]]:
        """The encoder's and the decoder's, in order."""
        enc: list[Part] = []
        dec: list[Part] = []
        c, image = self.model_channels, 3
        widths = [c * multiple for multiple in self.channel_mult]
        ch, skips = (c if self.song else widths[0]), []
        for level, width in enumerate(widths):
            side = self.img_resolution >> level
            enc.append((f"enc.{side}x{side}_down", "down", ch, ch, False) if level else (f"enc.{side}x{side}_conv", "stem", 3, ch, False))
            skips.append(ch)
            if level and self.song and self.fir:
                enc.append((f"enc.{side}x{side}_aux_residual", "pyramid", image, ch, False))
                image = ch
            for i in range(self.num_blocks):
                enc.append((f"enc.{side}x{side}_block{i}", "block", ch, width, side in self.attn_resolutions))
                ch = width
                skips.append(ch)
        for level, width in reversed(list(enumerate(widths))):
            side = self.img_resolution >> level
            if level == len(widths) - 1:
                dec += [(f"dec.{side}x{side}_in0", "block", ch, ch, True), (f"dec.{side}x{side}_in1", "block", ch, ch, False)]
            else:
                dec.append((f"dec.{side}x{side}_up", "up", ch, ch, False))
            for i in range(self.num_blocks + 1):
                looks = side in self.attn_resolutions and (i == self.num_blocks or not self.song)
                dec.append((f"dec.{side}x{side}_block{i}", "joined", ch + skips.pop(), width, looks))
                ch = width
        return enc, dec

    @property
    def last(self) -> tuple[str, str]:
        """The names of the last norm and convolution."""
        top = f"dec.{self.img_resolution}x{self.img_resolution}_aux_"
        return (f"{top}norm", f"{top}conv") if self.song else ("out_norm", "out_conv")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's names and shapes, of the network without the preconditioning around it."""
        e, n = 4 * self.model_channels, self.noise_channels
        enc, dec = self.parts()
        found: dict[str, tuple[int, ...]] = {"map_noise.freqs": (n // 2,)} if self.song and self.fir else {}
        if self.label_dim:
            found |= dict(layer("map_label", n, self.label_dim)) if self.song else {"map_label.weight": (e, self.label_dim)}
        found |= {"map_augment.weight": (n, self.augment_dim)} if self.augment_dim else {}
        found |= dict([*layer("map_layer0", e, n), *layer("map_layer1", e, e)])
        for part in (*enc, *dec):
            found |= dict(self.layers_of(*part, e))
        width = dec[-1][3]
        return found | dict([*layer(self.last[0], width), *layer(self.last[1], self.out_channels, width, 3, 3)])

    def layers_of(self, name: str, kind: str, before: int, width: int, looks: bool, e: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        taps = ("resample_filter", tuple(self.taps.shape))
        if kind in ("stem", "pyramid"):
            yield from layer(name, width, before, 3, 3)
            yield from [(f"{name}.{taps[0]}", taps[1])] if kind == "pyramid" else []
            return
        resampled = kind in ("down", "up")
        yield from [*layer(f"{name}.norm0", before), *layer(f"{name}.conv0", width, before, 3, 3)]
        yield from [*layer(f"{name}.affine", width * (1 if self.song else 2), e), *layer(f"{name}.norm1", width)]
        yield from layer(f"{name}.conv1", width, width, 3, 3)
        yield from layer(f"{name}.skip", width, before, 1, 1) if before != width or (resampled and self.song) else ()
        yield from [(f"{name}.{at}.{taps[0]}", taps[1]) for at in ("conv0", "skip")] if resampled else []
        if looks:
            yield from [*layer(f"{name}.norm2", width), *layer(f"{name}.qkv", 3 * width, width, 1, 1)]
            yield from layer(f"{name}.proj", width, width, 1, 1)

    def __call__(self, w: dict[str, Tensor], x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """F(x, c_noise, classes [b, label_dim], one-hot, or zeros) -> [b, out_channels, h, w]."""
        enc, dec = self.parts()
        e, image, kept = self.mapped(w, label, classes), x, []
        for name, kind, *_, looks in enc:
            if kind == "pyramid":
                x = kept[-1] = image = (x + self.smaller(w, name, image)) / math.sqrt(2)
                continue
            x = conv(w, name, x) if kind == "stem" else self.block(w, name, kind, x, e, looks)
            kept.append(x)
        for name, kind, *_, looks in dec:
            x = torch.cat([x, kept.pop()], 1) if kind == "joined" else x
            x = self.block(w, name, kind, x, e, looks)
        return conv(w, self.last[1], silu(self.norm(w, self.last[0], x)))

    def mapped(self, w: dict[str, Tensor], label: Tensor, classes: Tensor | None) -> Tensor:
        n = self.noise_channels
        if not self.song:
            h = dense(w, "map_layer1", silu(dense(w, "map_layer0", sinusoid(label, n))))
            return silu(h if classes is None else h + dense(w, "map_label", classes))
        by = 2 * math.pi * w["map_noise.freqs"] if self.fir else 10_000 ** (-torch.arange(n // 2, dtype=label.dtype) / (n // 2 - 1))
        angle = label[:, None] * by
        features = torch.cat([angle.sin(), angle.cos()], 1)
        if classes is not None:
            features = features + dense(w, "map_label", classes * math.sqrt(self.label_dim))
        return silu(dense(w, "map_layer1", silu(dense(w, "map_layer0", features))))

    def over(self, x: Tensor, channels: int) -> Tensor:
        return self.taps.to(x.dtype).repeat(channels, 1, 1, 1)

    def resampled(self, x: Tensor, kind: str) -> Tensor:
        """By the filter, each channel by itself; as it is, if the block is no resampling one."""
        channels, around = x.shape[1], (self.taps.shape[-1] - 1) // 2
        if kind == "down":
            return conv2d(x, self.over(x, channels), stride=2, padding=around, groups=channels)
        return conv_transpose2d(x, 4 * self.over(x, channels), stride=2, padding=around, groups=channels) if kind == "up" else x

    def smaller(self, w: dict[str, Tensor], name: str, image: Tensor) -> Tensor:
        """The convolution, then the filter with stride 2, then the bias."""
        h = conv2d(image, w[f"{name}.weight"], padding=2)
        return conv2d(h, self.over(h, h.shape[1]), stride=2, groups=h.shape[1]) + w[f"{name}.bias"][:, None, None]

    def norm(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        return group_norm(x, min(32, x.shape[1] // 4), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6 if self.song else 1e-5)

    def block(self, w: dict[str, Tensor], name: str, kind: str, x: Tensor, e: Tensor, looks: bool) -> Tensor:
        by = math.sqrt(0.5) if self.song else 1.0
        h = conv(w, f"{name}.conv0", self.resampled(silu(self.norm(w, f"{name}.norm0", x)), kind))
        told = dense(w, f"{name}.affine", e)[:, :, None, None]
        if self.song:
            h = self.norm(w, f"{name}.norm1", h + told)
        else:
            scale, shift = told.chunk(2, 1)
            h = shift + self.norm(w, f"{name}.norm1", h) * (1 + scale)
        x = self.resampled(x, kind)
        x = conv(w, f"{name}.skip", x, padding=0) if f"{name}.skip.weight" in w else x
        x = (conv(w, f"{name}.conv1", silu(h)) + x) * by
        return (x + self.attention(w, name, x)) * by if looks else x

    def attention(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        b, c, *sides = x.shape
        heads = 1 if self.song else c // 64
        qkv = conv(w, f"{name}.qkv", self.norm(w, f"{name}.norm2", x), padding=0)
        q, k, v = qkv.reshape(b, heads, c // heads, 3, -1).unbind(3)  # the three of a channel side by side
        looks = torch.einsum("bhcn,bhcm->bhnm", q, k).div(math.sqrt(c // heads)).softmax(-1)
        return conv(w, f"{name}.proj", torch.einsum("bhnm,bhcm->bhcn", looks, v).reshape(b, c, *sides), padding=0)
