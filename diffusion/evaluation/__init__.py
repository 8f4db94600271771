"""Evaluation: its subjects, their measurement, and tables of the results."""

EXACT = "exact"  # in a checkpoint's place: the exact denoiser of a data set
