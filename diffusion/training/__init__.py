"""Training: the LightningModule, its callbacks, and one run from a configuration."""
