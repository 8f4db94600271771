"""Every file in conf/ composes, builds, and every experiment survives a few steps."""

from pathlib import Path

import pytest
import torch
from composing import ROOT, composed, way
from experiments import shrunk

from diffusion.model import assemble, variance_of
from diffusion.networks.resampling import Downsample
from diffusion.support.build import build, ways
from diffusion.training.run import train

CONF = ROOT / "conf"
SKIP = {"hydra"}
CHOICES = [(f.parent.relative_to(CONF).as_posix(), f.stem) for f in sorted(CONF.glob("*/*.yaml")) if f.parent.name not in SKIP]


@pytest.mark.parametrize("group, choice", CHOICES, ids=[f"{g}={c}" for g, c in CHOICES])
def test_composes(group, choice):
    if group in (others := {"edit": "sample", "sweep": "evaluate"}):  # of another command alone
        said = way(composed(), f"{group}={choice}", name=others[group])
        assert said["sampler"]["_target_"]
        assert group == "edit" or said["metric"]["fd_digits"]["n"] == (128 if choice == "few" else 1000)
        return
    config = composed(
        f"logger={choice}" if group == "logger" and choice == "none" else f"{group}={choice}" if group != "logger" else "seed=0"
    )
    assert config["task"]["_target_"]


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g in ("sampler", "grid") and c != "custom"])
def test_sampling_groups_build_from_both_commands(choice):
    group = next(g for g, c in CHOICES if c == choice and g in ("sampler", "grid"))
    run = composed()
    for config in (composed(f"{group}={choice}"), *(way(run, f"{group}={choice}", name=name) for name in ("sample", "evaluate"))):
        assert build(config["sampler"], "sampler") and build(config["grid"], "grid")


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "schedule" and c != "custom"])
def test_schedules_build(choice):
    schedule = build(composed(f"schedule={choice}", "objective=simple")["schedule"], "schedule")
    assert schedule(torch.tensor(0.0, dtype=torch.float64))[1] == 0


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "experiment"])
def test_experiments_train(choice, tmp_path: Path):
    train(shrunk(choice, tmp_path / "cache", "trainer.accelerator=cpu", "precision=32-true"), tmp_path)
    assert (tmp_path / "checkpoints/last.ckpt").exists()


def test_guidance_stages_wrap_in_order():
    config = composed("guidance=[cfg,clip]", "guidance.scale=3", "codec.data_shape=[8,8,1]", "conditions.num_classes=10")
    (main,) = ways(config).values()
    outer = assemble(config).recipe(**main).denoiser
    assert type(outer).__name__ == "Clip" and type(outer.denoiser).__name__ == "ClassifierFree" and outer.denoiser.scale == 3


MODELS = {  # document 002: the channels, and the blocks in order
    "res_conv_64": (128, ["res", "conv", "clsAtn", "chnAtn"]),
    "res_64": (128, ["res", "clsAtn", "chnAtn"]),
    "res_res_64": (128, ["res", "res", "clsAtn", "chnAtn"]),
    "res_res_atn_64": (128, ["res", "res", "clsAtn", "atn", "chnAtn"]),
    "res_large_64": (192, ["res", "clsAtn", "chnAtn"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_models_of_document_002(name):
    """Its list of settings, "My results", 1 to 14 in order but for the gradient's accumulation, in the run that would be."""
    config = composed("experiment=res_64", f"network={name}")
    network, channels = config["network"], MODELS[name][0]
    assert (network["channels"], network["block"]) == MODELS[name] and network["dropout"] == 0
    assert (config["dataset"]["image_size"], config["dataset"]["num_classes"]) == (64, 1000)
    assert [channels * m for m in network["multipliers"]][:3] == [2 * channels, 4 * channels, 8 * channels]  # doubling, on three levels
    assert config["schedule"]["_target_"].endswith(".Cosine") and config["schedule"]["num_timesteps"] == 1000
    assert config["objective"] == {"_target_": "diffusion.objectives.Hybrid", "weight": 0.001}
    assert (config["batch_size"], config["accumulate"], config["steps"]) == (1024, 1, 600_000)
    assert config["optimizer"]["lr"] == 3e-4 and config["p_uncond"] == 0.2
    learned = variance_of(config["objective"])["learned_variance"]
    told = {"in_channels": 3, "out_channels": 3 * (1 + learned), "image_size": 64, "num_classes": 1000}  # as `assemble` says
    with torch.device("meta"):
        built = build(network, "network", told)
    assert learned and built.out.out_channels == 6
    assert built.time.out.out_features == built.classes.embedding_dim == 512
    assert network["attention"] == ([16, 8] if "atn" in network["block"] else [])
    assert sum(isinstance(block, Downsample) for block in built.down) == 3 and built.multiple == 8  # "number of U-net blocks 3": 64 to 8
    # without guidance, of 10,000 images every 50,000 steps, by DDIM's scale 0 or 1 and steps of 1 or 10
    assert config["guidance"]["cfg"]["scale"] == 1 and config["callbacks"]["distance"]["every"] is None
    assert {key: config["callbacks"]["milestones"][key] for key in ("every", "n")} == {"every": 50_000, "n": 10_000}
    sampled = {name: (way["sampler"]["eta"], way["grid"]["steps"]) for name, way in ways(config).items()}
    assert sampled == {"main": (0, 100), "ddim_1000": (0, 1000), "ddpm_100": (1, 100), "ddpm_1000": (1, 1000)}
