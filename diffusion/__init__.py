"""Train and sample diffusion models. The parts compose; see README.md for the map."""

__version__ = "0.1.0"
