"""Plots of results that are lists, not single numbers."""

import logging

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


def bound_plot(title: str, terms: list[float], prior: float, fraction: list[float] | None) -> Tensor | None:
    """The terms L_0 .. L_{T-1} of a variational bound over the time step, both logarithmic (as IDDPM fig. 2), the prior's as a line, and
    beside them the learned variance's fraction if there is one: uint8 [h, w, 3]. None, and a line in the log, without Matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        log.warning("No plot of %s: %s; `pip install -e .[metrics]` brings it.", title, error)
        return None
    figure = Figure(figsize=(9, 4), dpi=90, layout="constrained")
    canvas, panels = FigureCanvasAgg(figure), figure.subplots(1, 2 if fraction else 1, squeeze=False)[0]
    steps = range(1, len(terms) + 1)  # L_{t-1} belongs to step t, and a logarithm has no 0
    panels[0].plot(steps, terms, linewidth=1.3, label="$L_{t-1}$")
    if prior > 0:  # a schedule that ends in pure noise has none
        panels[0].axhline(prior, color="black", linewidth=1, linestyle=":", label="$L_T$")
    panels[0].set(xscale="log", yscale="log", xlabel="step t", ylabel="bits per dimension", title=title)
    panels[0].legend()
    if fraction:
        panels[1].plot(steps, fraction, linewidth=1.3)
        panels[1].ticklabel_format(axis="y", useOffset=False)
        panels[1].set(xscale="log", xlabel="step t", title="learned variance: 0 the smaller, 1 the larger")
    for axes in panels:
        axes.grid(which="both", alpha=0.25)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3].copy())
