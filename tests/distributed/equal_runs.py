"""A training in float64 that this process makes alone or as one rank of several, for tests/distributed/test_equal_runs.py."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer

from diffusion.checkpoint import read_checkpoint
from diffusion.codecs import Autoencoder, Pixels
from diffusion.data import DataModule
from diffusion.latents import codec
from diffusion.model import assemble, completed
from diffusion.support.build import build
from diffusion.support.seeds import mixed
from diffusion.training.callbacks import Losses
from diffusion.training.callbacks.checkpoints import SealedIO
from diffusion.training.run import training_module
from diffusion.training.sharding import Sharded
from diffusion.typing import Noise


@dataclass(frozen=True)
class Double(Pixels):
    """Pictures in float64, and with them all that is trained on them."""

    def encode(self, batch: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        return super().encode(batch).double()


def latents(**settings: Any) -> Autoencoder:
    """An autoencoder in float64, and with it its latents; `weights` is the hash that it has in float32."""
    made = codec(**settings)
    made.network.double()
    return made


DOUBLES = {"diffusion.codecs.Pixels": "equal_runs.Double", "diffusion.latents.codec": "equal_runs.latents"}


def fit(config: dict[str, Any], folder: Path, accumulate: int = 1, world: int = 1, until: int | None = None, shard: bool = False) -> Path:
    """Steps of config["batch_size"] items in `accumulate` batches on `world` processes, each of which holds all or, with `shard`, its part,
    up to config["steps"] or `until`; from folder/last.ckpt if there is one, which is written at the end. Returns the folder."""
    dataset = build(config["dataset"], "dataset")
    config = completed(config, dataset.load())
    config["codec"]["_target_"] = DOUBLES[config["codec"]["_target_"]]
    torch.manual_seed(mixed(config["seed"]))
    module = training_module(config, assemble(config), dataset.flip).double()
    module.ema.start(module.denoiser)
    if opponent := getattr(module, "opponent", None):  # an autoencoder's, which is no submodule
        opponent.network.double()
    trainer = Trainer(
        max_steps=until or config["steps"],
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        devices=world,
        strategy=Sharded() if shard else "ddp" if world > 1 else "auto",
        plugins=[SealedIO()],
        callbacks=[Losses(5)],
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataModule(dataset, config["batch_size"] // accumulate, config["seed"], **config["data"], conditions=module.conditions)
    last = folder / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(last)
    if shard:
        gathered = {name: weight.full_tensor().detach() for name, weight in module.named_parameters()}
        torch.save(gathered, folder / f"gathered-{trainer.global_rank}.pt")
    return folder


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run is: its weights, the history of its losses at each t, its averages."""
    saved = read_checkpoint(folder / "last.ckpt")
    averages = [saved["ema"], *saved["ema"].get("averages", [])]
    shadows = {f"average {i} of {name}": w for i, average in enumerate(averages) for name, w in average["shadow"].items()}
    return {name: value for name, value in (saved["state_dict"] | shadows).items() if value.is_floating_point()}


def log(folder: Path) -> list[dict[str, float]]:
    """What was recorded, without what the clock says."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("time", "since", "images_per_second")} for line in lines]


def as_rank(rank: int, world: int, rendezvous: str, config: dict[str, Any], jobs: list[tuple[str, dict[str, int]]]) -> None:
    """Make each job's run in its folder, as one rank of `world`."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    for folder, options in jobs:
        fit(config, Path(folder), world=world, **options)
    dist.destroy_process_group()
