"""Where Hydra looks for a sweeper: its class must be of the namespace hydra_plugins."""

from diffusion.sweeps.trials import Trials


class Optuna(Trials):
    """sweeper=optuna."""
