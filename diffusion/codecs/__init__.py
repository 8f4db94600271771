"""Codecs: between what people see and the space that a denoiser works in."""

from diffusion.codecs.pixels import Pixels

__all__ = ["Pixels"]
