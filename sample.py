"""python sample.py ckpt=runs/NAME n=64 sampler=ddim grid.steps=50 seed=0 — images, grid.png and samples.npz from a run."""

import json
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from diffusion.config import brought, own, register, told, words
from diffusion.schemas import SampleSchema, known
from diffusion.shell import begin, shell
from diffusion.support.commands import made_by_command
from diffusion.support.errors import UserError
from diffusion.support.progress import loading

log = logging.getLogger(__name__)
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """One call of the command."""
    with begin(trust=cfg.trust, places=[*told(cfg, words()), Path("samples")]):
        known(cfg, SampleSchema)
        if OmegaConf.is_missing(cfg, "ckpt"):
            raise UserError("Say what to sample from: ckpt=runs/NAME, or a checkpoint of a run.")
        if along := brought(cfg, ("grid",)):
            log.info("brought along: %s", ", ".join(along))
        sample(cfg, words())


def sample(cfg: DictConfig, typed: Mapping[str, str]) -> None:
    """Load, generate, write. Image i has seed SEED + i, and has the condition that it has in the run's own grids unless `classes`, `prompt`
    or `prompts` is given."""
    with loading("torch and the run"):  # slow, so that --help and a mistyped word have been answered by now
        import torch

        from diffusion import album
        from diffusion.checkpoint import load
        from diffusion.conditions.asking import require_texts, texts_in, wish
        from diffusion.editing import between, edited
        from diffusion.passport import code_version
        from diffusion.support.devices import join_ranks
        from diffusion.support.environment import environment

    if cfg.out is not None:
        if not cfg.out:
            raise UserError("out= names nothing: give a folder, FILE.npz or FILE.zip, or leave it out.")
        album.require_own(Path(cfg.out), "out")
    if cfg.trajectory and (int(os.environ.get("WORLD_SIZE", 1)) > 1 or album.suffix_of(Path(cfg.out or ""))):
        raise UserError("trajectory=true is for one process, and for a folder: leave it out, or say out=FOLDER without torchrun.")
    model = load(cfg.ckpt, cfg.averaged).to(join_ranks(cfg.device), cfg.precision)
    if cfg.negative_prompt is not None:
        require_texts(model.conditions, "negative_prompt", cfg.negative_prompt)
    n = cfg.n or (len(texts_in(cfg.prompts)) if cfg.prompts is not None else 64 if model.path else 1)
    size = model.size(cfg.height, cfg.width)
    how = {"batch_size": cfg.sample_batch_size, "precision": cfg.precision, "size": size, "graphs": cfg.graphs}
    recipe = model.recipe(**own(model.config, cfg, typed), **how)
    recipe = edited(recipe, OmegaConf.to_container(cfg.edit, resolve=True), n)
    seeds = between(cfg.between, n) if cfg.between else range(cfg.seed, cfg.seed + n)
    said = {key: OmegaConf.to_object(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key] for key in ("classes", "prompt", "prompts")}
    cond, names = wish(recipe.conditions, torch.arange(n), said)
    drawn = {"classes": said["classes"], "shape": list(recipe.shape), "columns": cfg.columns, "trajectory": cfg.trajectory}
    drawn |= {"size": None if size is None else list(size)}
    if names is not None:
        drawn |= {"prompts": list(dict.fromkeys(names)), "texts": sha256(json.dumps(list(names)).encode()).hexdigest()[:16]}
    made_by = {**model.describe(), **recipe.describe(), "seeds": album.seeds_as_data(seeds), **drawn}
    target = Path(cfg.out or model.samples / album.folder_name(made_by)).resolve()  # of a link what it leads to
    album.require_own(target, "out")
    by = {"command": made_by_command(), "environment": environment(), "code": code_version()}
    album.write(recipe, seeds, cond, target, {**by, **made_by}, cfg.columns, cfg.trajectory, names)
    first, film = f" of the first {album.PICTURES}" * (n > album.PICTURES), ", trajectory.gif" * cfg.trajectory
    beside = "" if album.suffix_of(target) else f", grid.png{first}{film} and samples.npz"
    log.info("%d image%s%s in %s", n, "s" * (n > 1), beside, target)


if __name__ == "__main__":
    shell(main)
