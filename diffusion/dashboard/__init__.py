"""One page that shows all runs: `python -m diffusion.dashboard runs/`."""

from diffusion.dashboard.page import Pictures, contents, html
from diffusion.dashboard.read import Reader, Run

__all__ = ["Pictures", "Reader", "Run", "contents", "html"]
