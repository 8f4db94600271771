"""What happens every so many steps: reading the losses, sample grids, distances, checkpoints, the progress bar."""

from diffusion.callbacks.checkpoints import Checkpoints
from diffusion.callbacks.distance import Distance
from diffusion.callbacks.losses import Losses
from diffusion.callbacks.progress import Progress
from diffusion.callbacks.samples import Samples
from diffusion.callbacks.snapshots import Snapshots

__all__ = ["Checkpoints", "Distance", "Losses", "Progress", "Samples", "Snapshots"]
