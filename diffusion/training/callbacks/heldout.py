"""The losses of items that training does not see."""

import torch
from pytorch_lightning import LightningModule, Trainer

from diffusion.noise import SeededNoise
from diffusion.support.ranges import Count
from diffusion.support.ranks import rank_and_world, sum_over_ranks
from diffusion.times import evenly
from diffusion.training.callbacks.evaluation import Evaluation
from diffusion.training.callbacks.periodic import record
from diffusion.training.loss_meter import QUARTERS, by_quarter


class HeldOut(Evaluation):
    """Every `every` steps: each term of the objective's loss on the items that dataset.holdout keeps from training, all and in each quarter
    of t, as heldout, heldout/TERM and heldout/t1of4, with averaged weights. Nothing without such items.

    Item i has its own t, which cover (0, 1] evenly, and its own noise, the same each time and in every run: what differs between two
    readings is the weights. The means are those of a uniform t, whatever `times` is (training's are too, but for times whose distribution
    of t is part of the objective, as log_normal's); no condition is dropped. Each rank takes its share."""

    def __init__(self, every: Count | None, at_start: bool = False) -> None:
        super().__init__(every, at_start)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Without held-out items there is nothing to do."""
        if not len(trainer.datamodule.held):
            self.every = None

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        data, device = trainer.datamodule, trainer.strategy.root_device
        (rank, world), held = rank_and_world(), data.held
        times, sums, names = evenly(len(held), module.denoiser.schedule, device), torch.zeros((), device=device), list[str]()
        for part in torch.arange(len(held))[rank::world].split(data.batch_size // world):
            t = times[part.to(device)]
            with trainer.precision_plugin.forward_context():
                losses = module.losses(data.items(held[part]), t, SeededNoise(part.tolist(), device))
            terms = torch.stack([*losses.values(), torch.ones_like(losses["loss"])]).double()
            names, sums = list(losses), sums + by_quarter(terms, t)
        sums = sum_over_ranks(sums).cpu()
        means = {"": sums[:-1].sum(1) / len(held)} | {f"/t{q + 1}of{QUARTERS}": sums[:-1, q] / sums[-1, q] for q in range(QUARTERS)}
        values = {
            f"heldout{'' if name == 'loss' else f'/{name}'}{part}": value
            for part, found in means.items()
            for name, value in zip(names, found.tolist(), strict=True)
            if value == value
        }
        record(trainer, values)
