"""Callbacks that act every so many steps: reading the losses, sample grids, distances, checkpoints, the progress bar."""

from diffusion.training.callbacks.checkpoints import Checkpoints
from diffusion.training.callbacks.distance import Distance
from diffusion.training.callbacks.heldout import HeldOut
from diffusion.training.callbacks.latents import Latents
from diffusion.training.callbacks.losses import Losses
from diffusion.training.callbacks.progress import Progress
from diffusion.training.callbacks.samples import Reconstructions, Samples
from diffusion.training.callbacks.snapshots import Snapshots

__all__ = ["Checkpoints", "Distance", "HeldOut", "Latents", "Losses", "Progress", "Reconstructions", "Samples", "Snapshots"]
