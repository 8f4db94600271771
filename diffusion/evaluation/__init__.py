"""Evaluation: its subjects, their measurement, and tables of the results."""

EXACT = "exact"  # in a checkpoint's place: the exact denoiser of a data set
DISTANCES = {  # metrics that are of images alone, and 0 for what cannot be told from the real ones
    f"diffusion.metrics.{name}"
    for name in ("FrechetDistance", "SpatialFrechetDistance", "FrechetInfinity", "KernelDistance", "SlicedWasserstein")
}
