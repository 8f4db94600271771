"""Codecs: maps between the data and the space that a denoiser works in."""

from diffusion.codecs.autoencoder import Autoencoder
from diffusion.codecs.pixels import Pixels
from diffusion.codecs.standardised import Standardised

__all__ = ["Autoencoder", "Pixels", "Standardised"]
