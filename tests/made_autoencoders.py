"""A run's folder with an autoencoder of random weights, in the form in which a training leaves it."""

from pathlib import Path

import torch
import yaml
from composing import TINY, composed

from diffusion.checkpoint import write_checkpoint
from diffusion.model import assemble, completed
from diffusion.support.build import build

LATENTS = {"mean": [0.1, -0.1], "std": [0.5, 0.25], "n": 256}


def autoencoder(folder: Path, *words: str, latents: dict | None = LATENTS, seed: int = 0) -> Path:
    """`folder`, a run of an autoencoder of 8 x 8 pictures with latents of 2 x 4 x 4."""
    small = ["task=autoencoder", "network.channels=8", "network.latent_channels=2", "metric=none"]
    tiny = [word for word in TINY if not word.startswith("network.")]
    config = composed(*tiny, *small, f"paths.cache={folder.parent / 'cache'}", *words)
    config = completed(config, build(config["dataset"], "dataset").load())
    torch.manual_seed(seed)
    model = assemble(config)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    weights = {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
    said = {} if latents is None else {"latents": latents}
    write_checkpoint(
        {"state_dict": weights, "ema": {"shadow": {}, "average": None}, "global_step": 7, **said}, folder / "checkpoints/last.ckpt"
    )
    return folder


def of_diffusers(folder: Path, channels: int = 1, seed: int = 0) -> Path:
    """`folder`, diffusers' AutoencoderKL of 8 x 8 pictures with latents of 3 x 4 x 4, as diffusers writes it."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        diffusers.AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            norm_num_groups=4,
            sample_size=8,
            scaling_factor=0.5,
            shift_factor=0.25,
        ).save_pretrained(folder)
    return folder
