"""Nonsense is refused before the data are read and anything is written, with one sentence that names the key as it is typed."""

from copy import deepcopy
from functools import cache

import pytest
from composing import TINY, composed

from diffusion.classifier import of_unet
from diffusion.codecs import Pixels
from diffusion.conditions import Unconditional
from diffusion.denoiser import Denoiser
from diffusion.model import Model
from diffusion.networks import MLP, UNet
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDPM
from diffusion.schedules import Cosine, Schedule
from diffusion.support.errors import UserError, one_sentence
from diffusion.support.trust import packages
from diffusion.training.fitting import CONTRACTS, methods, require_methods
from diffusion.training.run import train


class NoCall:
    """Of the user's, and not what it should be."""


class HalfSchedule(Schedule):
    def log_snr(self, t):
        return t


class HalfRead:
    def x0(self, out, x_t, alpha, sigma):
        return out


@cache
def tiny():
    return composed(*TINY)


def weighted(name, **settings):
    return {"_target_": "diffusion.objectives.Simple", "weighting": {"_target_": f"diffusion.weightings.{name}", **settings}}


CASES = [
    ("dataset", {"_target_": "diffusion.data.Digits", "root": "data", "cache": float("inf")}, "dataset.cache=inf should be of type"),
    ("training", {"_target_": "diffusion.training.module.DiffusionModule", "x": 1}, "training.x is not a setting of DiffusionModule"),
    ("grid", {"_target_": "diffusion.grids.Karras", "rho": 0}, "grid.rho=0 must be between 0.1 and 100."),
    ("objective", weighted("MinSNR", gamma=-1), "objective.weighting.gamma=-1 must be above 0."),
    ("objective", weighted("P2", k=-5), "objective.weighting.k=-5 must be above 0."),
    ("sampler", {"_target_": "diffusion.samplers.DPMPPSDE", "r": 0}, "sampler.r=0 must be above 0 and at most 1."),
    ("network", {"_target_": "diffusion.networks.DiT", "patch": 0}, "network.patch=0 must be between 1 and 100000."),
    ("network", {"_target_": "diffusion.networks.DiT", "depth": 0}, "network.depth=0 must be between 1 and 100000."),
    ("network.heads", 0, "network.heads=0 must be between 1 and 100000."),
    ("network.res_blocks", 0, "network.res_blocks=0 must be between 1 and 100000."),
    ("network.channels", -8, "network.channels=-8 must be between 1 and 100000."),
    ("network.dropout", float("nan"), "network.dropout=nan must be between 0 and 1."),
    ("network.multipliers", [1, 0], "network.multipliers[1]=0 must be between 0.25 and 100000."),
    ("schedule.s", -1, "schedule.s=-1 must be at least 0."),
    ("optimizer.lr", "banana", "optimizer.lr=banana should be of type float."),
    ("optimizer.betas", [0.9], "optimizer.betas=[0.9] should be of type [float, float]."),
    ("callbacks.samples.columns", 0, "callbacks.samples.columns=0 must be between 1 and 100000."),
    ("callbacks.samples.rows", -1, "callbacks.samples.rows=-1 must be between 1 and 100000."),
    ("dataset.n", -1, "dataset.n=-1 must be between 1 and 10000000."),
    ("dataset.image_size", 0, "dataset.image_size=0 must be between 1 and 100000."),
    ("trainer.devices", -5, "trainer.devices=-5 must be at least -1."),
    ("guidance.cfg.scale", float("nan"), "guidance.cfg.scale=nan must be finite."),
    ("schedule", {"_target_": "diffusion.schedules.Flow", "shift": 0}, "schedule.shift=0 must be above 0."),
    ("metric", {"sw": {"_target_": "diffusion.metrics.SlicedWasserstein", "projections": 0}}, "metric.sw.projections=0 must be between"),
    (
        "metric",
        {"fd": {"_target_": "diffusion.metrics.FrechetDistance", "extractor": [1]}},
        "metric.fd.extractor=[1] should be of type Extractor.",
    ),
    ("sampler", {"_target_": f"{__name__}.NoCall"}, f"sampler._target_={__name__}.NoCall has no __call__, as Sampler says."),
    ("schedule", {"_target_": f"{__name__}.HalfSchedule"}, "schedule._target_ is HalfSchedule, which has no time."),
    (
        "parameterization",
        {"_target_": f"{__name__}.HalfRead"},
        f"parameterization._target_={__name__}.HalfRead has no eps and no scale_in and no target, as Parameterization says.",
    ),
]


@pytest.mark.parametrize(("key", "value", "said"), CASES, ids=lambda value: str(value)[:40])
def test_nonsense_in_a_configuration(key, value, said, tmp_path, monkeypatch):
    """Refused while the data set cannot even be looked at."""
    monkeypatch.setattr("diffusion.data.Synthetic.load", lambda self: pytest.fail("the data were read first"))
    config = deepcopy(tiny())
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    with pytest.raises((ValueError, UserError)) as error:
        train(config, tmp_path / "run")
    assert str(error.value).startswith(said) and not (tmp_path / "run").exists()


def test_the_contracts_hold_of_what_there_is():
    """And each asks for something."""
    require_methods(tiny())
    assert all(methods(contract) for contract in CONTRACTS.values())


def test_a_classifier_of_no_classes_is_refused_when_it_is_made():
    """It was at the first step, when the run's folder had been written."""
    with pytest.raises(ValueError, match="task=classifier needs a data set with classes"):
        of_unet(UNet(image_size=8, channels=4, multipliers=(1,), attention=()), Cosine(), 0)


def test_a_variance_that_was_not_learned_is_refused_when_the_recipe_is_made():
    """It was at the first picture, after the first hundreds of steps."""
    denoiser = Denoiser(MLP(), Cosine(), Epsilon())
    with pytest.raises(ValueError, match=r"sampler\.variance=learned needs a model .* sampler\.variance=auto"):
        Model(denoiser, Pixels((8, 8, 1)), Unconditional()).recipe(DDPM("learned"), grid=lambda schedule: None)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_full_memory_is_one_sentence(error, capsys):
    with pytest.raises(SystemExit), one_sentence():
        raise error
    assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shape"), one_sentence():
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("trust", [True, 3, [None], {"a": 1, "b c": 2}])
def test_what_is_not_a_package_is_not_trusted(trust):
    with pytest.raises(UserError, match="is not the name of a package"):
        packages(trust)
